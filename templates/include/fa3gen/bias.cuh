// A bias that is added to products: S = S + bias / softmax scale.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cute/arch/util.hpp>
#include <cute/tensor.hpp>

namespace fa3gen {

// The tile of a bias in shared memory, (64 rows of a warpgroup, keys), as TMA writes it: column chunks of kTileRows
// rows of 128 bytes, whose 16-byte units are permuted row by row.
template <int kTileRows>
struct BiasRows {
  uint32_t address;  // of the unit that this lane gives ldmatrix for the first 16 keys

  __device__ __forceinline__ explicit BiasRows(uint32_t address) : address(address) {}
  __device__ __forceinline__ explicit BiasRows(void const* rows) : address(cute::cast_smem_ptr_to_uint(rows)) {
    int const row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 16, unit = threadIdx.x % 32 / 16;
    address += row * 128 + (unit ^ row % 8) * 16;
  }

  __device__ __forceinline__ BiasRows operator+(int elements) const { return BiasRows(address + elements * 2); }

  // This thread's elements of keys key to key + 15, two in each register: by 8 keys, and rows 8 apart.
  __device__ __forceinline__ void load(uint32_t (&pairs)[2][2], int key) const {
    uint32_t const from = (address ^ key % 64 * 2) + key / 64 * kTileRows * 128;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0][0]), "=r"(pairs[0][1]), "=r"(pairs[1][0]), "=r"(pairs[1][1])
                 : "r"(from));
  }
};

// Two elements in a row. NOTES: of bf16 by hand, for the compiler takes an instruction more.
template <class Bias>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<Bias, __nv_bfloat16>) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  } else {
    __half2 halves;
    memcpy(&halves, &pair, sizeof halves);
    return __half22float2(halves);
  }
}

// S = S + bias * factor; S is (2 keys, 2 rows, n / 8) of this thread.
template <class Bias, class Accumulator, int kTileRows>
__device__ __forceinline__ void add_bias(Accumulator& scores, BiasRows<kTileRows> const& bias, float factor) {
#pragma unroll
  for (int group = 0; group < cute::size<2>(scores); group += 2) {
    uint32_t pairs[2][2];
    bias.load(pairs, group * 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float2 const two = unpack<Bias>(pairs[half][r]);
        scores(0, r, group + half) = fmaf(two.x, factor, scores(0, r, group + half));
        scores(1, r, group + half) = fmaf(two.y, factor, scores(1, r, group + half));
      }
    }
  }
}

}  // namespace fa3gen
