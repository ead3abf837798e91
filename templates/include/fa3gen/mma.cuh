// Warpgroup MMA: operands in shared memory, a whole tile's product, register tiles.
//
// A kernel defines one struct a product (wgmma has a PTX instruction of its own for each width), with
// issue(accumulator, a, b, accumulate) for one k block of 16.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cute/arch/util.hpp>
#include <cute/tensor.hpp>

namespace fa3gen {

enum class Accumulate { kNo, kYes };

// A matrix descriptor (PTX ISA, asynchronous warpgroup MMA, shared-memory matrix layout): address and
// strides in units of 16 bytes, 128-byte swizzle.
__device__ __forceinline__ uint64_t swizzled_descriptor(void const* tile, int leading, int stride) {
  uint64_t const address = (cute::cast_smem_ptr_to_uint(tile) & 0x3FFFF) >> 4;
  return address | uint64_t(leading) << 16 | uint64_t(stride) << 32 | uint64_t(1) << 62;
}

constexpr int kRowUnits = 8;    // one row of a column chunk, 128 bytes, in units of 16
constexpr int kGroupUnits = 64;  // 8 rows, after which the swizzle repeats

// A tile of kRows rows that the product contracts along its columns: Q, and K^T.
template <int kRows>
struct RowOperand {
  uint64_t descriptor;

  __device__ explicit RowOperand(void const* tile)
      : descriptor(swizzled_descriptor(tile, 1, kGroupUnits)) {}

  // k blocks are 32 bytes apart in a chunk of four, chunks kRows rows apart.
  __device__ __forceinline__ uint64_t operator()(int k) const {
    return descriptor + k / 4 * kRows * kRowUnits + k % 4 * 2;
  }
};

// A tile of kRows rows that the product contracts along its rows: V.
template <int kRows>
struct ColumnOperand {
  uint64_t descriptor;

  __device__ explicit ColumnOperand(void const* tile)
      : descriptor(swizzled_descriptor(tile, kRows * kRowUnits, kGroupUnits)) {}

  // k blocks are 16 rows apart.
  __device__ __forceinline__ uint64_t operator()(int k) const {
    return descriptor + k * 16 * kRowUnits;
  }
};

// An operand so many units of 16 bytes further, in another stage.
template <class Operand, class = decltype(Operand::descriptor)>
__device__ __forceinline__ Operand operator+(Operand operand, int units) {
  operand.descriptor += units;
  return operand;
}

// Earlier accesses to wgmma's registers come before the next wgmma.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Issue C (+)= A B over kBlocks k blocks, both operands in shared memory.
// NOTES: an earlier fence may cover C already, but ptxas puts one of its own before a product that
// reads registers (C7519), and where it cannot it serialises every wgmma of the kernel (C7520).
template <class Product, Accumulate kAccumulate, int kBlocks, class A, class B, class C>
__device__ __forceinline__ void issue_gemm(A const& a, B const& b, C& c) {
  if constexpr (kAccumulate == Accumulate::kYes) {
    wgmma_fence();
  }
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    Product::issue(c.data(), a(k), b(k), kAccumulate == Accumulate::kYes || k > 0);
  }
}

// Issue C (+)= A B with A in registers, (4 registers, k blocks). Fenced as above.
template <class Product, Accumulate kAccumulate, int kBlocks, class A, class B, class C>
__device__ __forceinline__ void issue_gemm_registers(A const& a, B const& b, C& c) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    Product::issue(c.data(), &a(0, k), b(k), kAccumulate == Accumulate::kYes || k > 0);
  }
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Wait until at most kPending groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(kPending) : "memory");
}

// The compiler must not move accesses to a register tile across this point.
template <class Fragment>
__device__ __forceinline__ void pin(Fragment& fragment) {
#pragma unroll
  for (int i = 0; i < cute::size(fragment); ++i) {
    if constexpr (std::is_same_v<typename Fragment::value_type, float>) {
      asm volatile("" : "+f"(fragment(i)) :: "memory");
    } else {
      asm volatile("" : "+r"(fragment(i)) :: "memory");
    }
  }
}

// Registers a thread, moved between the warpgroups of a CTA.
template <int kCount>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(kCount));
}

template <int kCount>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(kCount));
}

// An accumulator of one warpgroup: a thread holds (2 columns, 2 rows, columns / 8).
template <int kColumns>
using AccumulatorLayout =
    cute::Layout<cute::Shape<cute::_2, cute::_2, cute::Int<kColumns / 8>>>;

// The same registers as (2 rows, columns / 4).
template <class Accumulator>
__device__ __forceinline__ auto row_column_view(Accumulator& accumulator) {
  using namespace cute;
  constexpr int kGroups = decltype(size<2>(accumulator.layout()))::value;
  return make_tensor(accumulator.data(),
                     Layout<Shape<_2, Shape<_2, Int<kGroups>>>, Stride<_2, Stride<_1, _4>>>{});
}

// A 16-bit A operand of one warpgroup: a thread holds (4 registers, columns / 16). Pair for pair
// this is the order of an accumulator.
template <int kColumns>
using OperandLayout = cute::Layout<cute::Shape<cute::_4, cute::Int<kColumns / 16>>>;

template <class Element>
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
  static_assert(std::is_same_v<Element, __nv_bfloat16> || std::is_same_v<Element, __half>,
                "operands of 16 bits");
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<uint32_t const&>(pair);
  } else {
    __half2 const pair = __floats2half2_rn(low, high);
    return reinterpret_cast<uint32_t const&>(pair);
  }
}

// Rounds an accumulator to an operand.
template <class Element, class Accumulator, class Operand>
__device__ __forceinline__ void convert(Accumulator const& from, Operand& to) {
#pragma unroll
  for (int i = 0; i < cute::size(to); ++i) {
    to(i) = round_pair<Element>(from(2 * i), from(2 * i + 1));
  }
}

// Writes an operand to the 64 rows of a swizzled tile, a warp's 16 x 16 block an instruction.
template <class Operand, class Tile>
__device__ __forceinline__ void store_matrix(Operand const& operand, Tile&& tile) {
  int const lane = threadIdx.x % 32;
  int const row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
  for (int block = 0; block < cute::size<1>(operand); ++block) {
    uint32_t const target =
        cute::cast_smem_ptr_to_uint(&tile(row, block * 16 + lane / 16 * 8));
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :: "r"(target), "r"(operand(0, block)), "r"(operand(1, block)),
                    "r"(operand(2, block)), "r"(operand(3, block))
                 : "memory");
  }
}

// Rounds an accumulator and writes it to a swizzled tile, from where a product can read it.
template <class Element, class Accumulator, class Tile>
__device__ __forceinline__ void store_operand(Accumulator const& from, Tile&& tile) {
  constexpr int kPairs = decltype(cute::size(from))::value / 2;
  auto operand = cute::make_tensor<uint32_t>(OperandLayout<kPairs * 4>{});
  convert<Element>(from, operand);
  store_matrix(operand, tile);
}

}  // namespace fa3gen
