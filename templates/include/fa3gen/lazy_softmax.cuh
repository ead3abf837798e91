// Online softmax of one warpgroup, base 2, whose maxima are followed lazily.
//
// Exponents are taken of x = S scale_log2 - shift. Any shift gives the same O and LSE, as long as no
// power of 2 overflows and the largest do not vanish: so a row's shift is its maximum when its first
// key comes, and grows only where some x of the warp's rows exceeds kLargest. That is rare, and then
// costs what an online softmax pays in every step: maxima over the quad, and O times alpha.
#pragma once

#include <climits>
#include <cmath>

#include <cute/tensor.hpp>

#include <fa3gen/softmax.cuh>

namespace fa3gen {

// Positive floats and their bits are in the same order, and negative floats have negative bits: so
// one integer comparison tells whether x exceeds a limit that is positive, or INT_MIN.
constexpr int kLargest = 0x41600000;  // 14.f; 2^14 is finite in fp16 too

// The build tries both orders of the columns that are compared, and keeps the one beside which the
// assembler has a row's shift at hand (fa3gen/jit/finish.py).
#ifndef FA3GEN_SWAP_COLUMNS
#define FA3GEN_SWAP_COLUMNS 0
#endif
constexpr bool kSwapColumns = FA3GEN_SWAP_COLUMNS;

struct ShiftedRows {
  float shift[kRows];    // subtracted from S scale_log2
  int limit[kRows];      // bits of the largest x that leave the shift alone; INT_MIN before any key
  float row_sum[kRows];  // of 2^x, this thread's columns only
  float alpha[kRows];    // what this step's growth asks O to be multiplied by
  bool grown;            // whether some shift of the warp's rows has grown in this step

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      shift[r] = 0.f;
      limit[r] = INT_MIN;
      row_sum[r] = 0.f;
    }
  }
};

__device__ __forceinline__ float subtracted(ShiftedRows const& rows, int r, float) {
  return rows.shift[r];
}

// The shifts of the warp's rows become the maxima of these columns, where they are larger. S before
// them, where 2^x was taken already, and row_sum are brought to the new shift.
template <int kBegin, int kEnd, class Scores>
__device__ __forceinline__ void grow(Scores&& scores, ShiftedRows& rows) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float largest = scores(r, kBegin);
#pragma unroll
    for (int c = kBegin + 1; c < kEnd; ++c) {
      largest = fmaxf(largest, scores(r, c));
    }
    largest = reduce_quad(largest, [](float a, float b) { return fmaxf(a, b); });
    bool const first = rows.limit[r] == INT_MIN;
    bool const masked = largest == -INFINITY;
    float const growth = masked ? 0.f : first ? largest : fmaxf(largest, 0.f);
    float const alpha = first ? 1.f : exp2_approx(-growth);
    rows.alpha[r] *= alpha;
    rows.row_sum[r] *= alpha;
    rows.shift[r] += growth;
    rows.limit[r] = first && masked ? INT_MIN : kLargest;
#pragma unroll
    for (int c = kBegin; c < kEnd; ++c) {
      scores(r, c) -= growth;
    }
#pragma unroll
    for (int c = 0; c < kBegin; ++c) {
      scores(r, c) *= alpha;
    }
  }
}

// x = S scale_log2 - shift in columns kBegin to kEnd, an even number of each; shifts may grow.
template <int kBegin, int kEnd, class Scores>
__device__ __forceinline__ void shift(Scores&& scores, ShiftedRows& rows, float scale_log2) {
  if constexpr (kBegin == 0) {
    rows.alpha[0] = rows.alpha[1] = 1.f;
  }
  bool exceeds = false;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = kBegin; c < kEnd; ++c) {
      scores(r, c) = fmaf(scores(r, c), scale_log2, -rows.shift[r]);
    }
    int largest = __float_as_int(scores(r, kBegin));
#pragma unroll
    for (int c = kBegin + 1; c + 1 < kEnd; c += 2) {
      largest = __vimax3_s32(largest, __float_as_int(scores(r, kSwapColumns ? c + 1 : c)),
                             __float_as_int(scores(r, kSwapColumns ? c : c + 1)));
    }
    largest = max(largest, __float_as_int(scores(r, kEnd - 1)));
    exceeds |= largest > rows.limit[r];
  }
  bool const grows = __any_sync(0xffffffff, exceeds);
  if (grows) {
    grow<kBegin, kEnd>(scores, rows);
  }
  rows.grown = kBegin == 0 ? grows : rows.grown || grows;
}

// S = 2^x in columns kBegin to kEnd.
template <int kBegin, int kEnd, class Scores>
__device__ __forceinline__ void raise(Scores&& scores) {
#pragma unroll
  for (int c = kBegin; c < kEnd; ++c) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      scores(r, c) = exp2_approx(scores(r, c));
    }
  }
}

// row_sum = row_sum + rowsum S, over this thread's columns.
template <class Scores>
__device__ __forceinline__ void add_sum(Scores const& scores, ShiftedRows& rows) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < cute::size<1>(scores); ++c) {
      rows.row_sum[r] += scores(r, c);
    }
  }
}

}  // namespace fa3gen
