// Tiles of scores element by element: formulas, masks, and the tensors that they look up.
//
// A formula is an object that knows its work tile. base(r, k) is what a row shares in a KV tile, from this
// thread's first key on; column(k) what both rows share at a key; pair(r, k) what a row looks up at two keys in a
// row; an element takes all.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cute/tensor.hpp>

#include <fa3gen/params.h>
#include <fa3gen/softmax.cuh>

namespace fa3gen {

// Indices clamped to a table; of an index that is not negative, to its end.
__device__ __forceinline__ int inside(int index, int size) { return max(min(index, size - 1), 0); }
__device__ __forceinline__ int at_most(int index, int last) { return min(index, last); }

// Values of inputs in key bounds, whose sums with positions then stay in 32 bits.
__device__ __forceinline__ int bounded(int value) { return max(min(value, 1 << 29), -(1 << 29)); }

// NOTES: volatile, for else the compiler loads for a whole tile at once, and runs out of registers.
__device__ __forceinline__ uint32_t load_bits(void const* from, bool wanted, std::integral_constant<int, 4>) {
  uint32_t bits;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.b32 wanted, %2, 0;\n"
      "mov.b32 %0, 0;\n"
      "@wanted ld.global.nc.b32 %0, [%1];\n"
      "}\n"
      : "=r"(bits) : "l"(from), "r"(int(wanted)));
  return bits;
}

__device__ __forceinline__ uint16_t load_bits(void const* from, bool wanted, std::integral_constant<int, 2>) {
  uint16_t bits;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.b32 wanted, %2, 0;\n"
      "mov.b16 %0, 0;\n"
      "@wanted ld.global.nc.b16 %0, [%1];\n"
      "}\n"
      : "=h"(bits) : "l"(from), "r"(int(wanted)));
  return bits;
}

__device__ __forceinline__ uint2 load_two(void const* from, bool wanted) {
  uint2 bits;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.b32 wanted, %3, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "@wanted ld.global.nc.v2.b32 {%0, %1}, [%2];\n"
      "}\n"
      : "=r"(bits.x), "=r"(bits.y) : "l"(from), "r"(int(wanted)));
  return bits;
}

// An integer, or any other number in fp32; 0 where it is not wanted.
template <class T>
__device__ __forceinline__ auto load_element(T const* from, bool wanted = true) {
  auto const bits = load_bits(from, wanted, std::integral_constant<int, sizeof(T)>{});
  T value;
  memcpy(&value, &bits, sizeof value);
  if constexpr (std::is_same_v<T, int>) {
    return value;
  } else {
    return static_cast<float>(value);
  }
}

// An element of an input.
template <class T, class... Index>
__device__ __forceinline__ auto look_up(InputTensor const& input, Index... index) {
  int64_t offset = 0;
  int dim = 0;
  ((offset += index * input.strides[dim++]), ...);
  return load_element(static_cast<T const*>(input.data) + offset);
}

__device__ __forceinline__ int64_t row_offset(InputTensor const&, int, int) { return 0; }

template <class... Index>
__device__ __forceinline__ int64_t row_offset(InputTensor const& input, int dim, int first, int next, Index... more) {
  return first * input.strides[dim] + row_offset(input, dim + 1, next, more...);
}

template <class... Index>
__device__ __forceinline__ uint32_t last_index(int first, Index... more) {
  if constexpr (sizeof...(more) == 0) {
    return first;
  } else {
    return last_index(more...);
  }
}

// The same of an input whose last dimension is contiguous, and no index of a head or batch.
template <class T, class... Index>
__device__ __forceinline__ auto look_up_along(InputTensor const& input, Index... index) {
  return load_element(static_cast<T const*>(input.data) + row_offset(input, 0, index...) + last_index(index...));
}

// The same of key k, which is `offset` after this thread's first of the KV tile: an immediate of the address. 0 past
// the last key, where nothing is kept.
template <class T, class... Index>
__device__ __forceinline__ auto look_up_key(InputTensor const& input, int seqlen_k, int k, int offset, Index... index) {
  T const* const row = static_cast<T const*>(input.data) + row_offset(input, 0, index..., 0);
  return load_element(row + (k - offset) + offset, k < seqlen_k);
}

// What two keys in a row look up.
template <class Value>
struct Two {
  Value at[2];

  __device__ __forceinline__ Value operator[](int i) const { return at[i]; }
};

// Keys k and k + 1 of an input, in one access: k, the base and the strides are even, counted in elements.
template <class T, class... Index>
__device__ __forceinline__ auto look_up_pair(InputTensor const& input, int seqlen_k, int k, int offset, Index... index) {
  T const* const row = static_cast<T const*>(input.data) + row_offset(input, 0, index..., 0);
  T const* const from = row + (k - offset) + offset;
  if constexpr (sizeof(T) == 2) {
    uint32_t const bits = load_bits(from, k < seqlen_k, std::integral_constant<int, 4>{});
    T values[2];
    memcpy(values, &bits, sizeof values);
    return Two<float>{static_cast<float>(values[0]), static_cast<float>(values[1])};
  } else {
    uint2 const bits = load_two(from, k < seqlen_k);
    Two<T> pair;
    memcpy(&pair, &bits, sizeof pair);
    return pair;
  }
}

// The columns of a thread in a KV tile: 2 in each 8.
__device__ __forceinline__ int first_key(int key) { return key + threadIdx.x % 4 * 2; }
constexpr int column_offset(int c) { return c / 2 * 8 + c % 2; }

// The first of the 16 rows of a warp, of a thread's first; the same number in all its threads.
__device__ __forceinline__ int first_of_warp(int row) {
  return __shfl_sync(0xffffffff, row - static_cast<int>(threadIdx.x % 32 / 4), 0);
}

// S = formula(S). `key`: the tile's first.
template <class Scores, class Formula>
__device__ __forceinline__ void modify_scores(Scores&& scores, int key, Formula const& formula) {
  int const first = first_key(key);
  typename Formula::Base const base[kRows] = {formula.base(0, first), formula.base(1, first)};
#pragma unroll
  for (int c = 0; c < cute::size<1>(scores); c += 2) {
    int const offset = column_offset(c), k = first + offset;
    typename Formula::Column const even = formula.column(k, offset), odd = formula.column(k + 1, offset + 1);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      typename Formula::Pair const pair = formula.pair(r, k, offset);
      scores(r, c) = formula(scores(r, c), r, base[r], even, pair, 0, k, offset);
      scores(r, c + 1) = formula(scores(r, c + 1), r, base[r], odd, pair, 1, k + 1, offset + 1);
    }
  }
}

// S = S where mask holds, -inf elsewhere.
template <class Scores, class Mask>
__device__ __forceinline__ void mask_scores(Scores&& scores, int key, Mask const& mask) {
  int const first = first_key(key);
  typename Mask::Base const base[kRows] = {mask.base(0, first), mask.base(1, first)};
#pragma unroll
  for (int c = 0; c < cute::size<1>(scores); c += 2) {
    int const offset = column_offset(c), k = first + offset;
    typename Mask::Column const even = mask.column(k, offset), odd = mask.column(k + 1, offset + 1);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      typename Mask::Pair const pair = mask.pair(r, k, offset);
      if (!mask(r, base[r], even, pair, 0, k, offset)) {
        scores(r, c) = -INFINITY;
      }
      if (!mask(r, base[r], odd, pair, 1, k + 1, offset + 1)) {
        scores(r, c + 1) = -INFINITY;
      }
    }
  }
}

// The same of a mask that repeats every kBlocks times 8 keys, inside the interval keys(row), from one bit a column.
template <bool kBegins, int kBlocks, class Scores, class Keys, class Mask>
__device__ __forceinline__ void mask_pattern(Scores&& scores, int row, int key, Keys keys, Mask const& mask) {
  constexpr int kPeriod = 2 * kBlocks;  // columns
  int const first = first_key(key);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    RowKeys const kept = keys(row + 8 * r);
    typename Mask::Base const base = mask.base(r, first);
#pragma unroll
    for (int word = 0; word < cute::size<1>(scores); word += kWord) {
      uint32_t period = 0;
#pragma unroll
      for (int c = 0; c < kPeriod; ++c) {
        int const offset = column_offset(word + c), k = first + offset;
        typename Mask::Pair const pair = mask.pair(r, k, offset);
        period |= mask(r, base, mask.column(k, offset), pair, c % 2, k, offset) ? 1u << c : 0;
      }
      uint32_t bits = period;
#pragma unroll
      for (int columns = kPeriod; columns < kWord; columns *= 2) {
        bits |= bits << columns;
      }
      bits &= interval_bits<kBegins>(kept, first + word * 4);
#pragma unroll
      for (int c = word; c < min(word + kWord, int(cute::size<1>(scores))); ++c) {
        if (!(bits >> (c - word) & 1)) {
          scores(r, c) = -INFINITY;
        }
      }
    }
  }
}

}  // namespace fa3gen
