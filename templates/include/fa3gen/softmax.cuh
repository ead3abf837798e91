// Online softmax of one warpgroup, base 2 (FlashAttention-2, section 3.1).
//
// A thread holds 2 rows of S, spread over the 4 lanes of its quad: element (r, c) of a row-column
// view is row 8r + lane / 4 of the warp's 16. Row sums stay partial until the end.
#pragma once

#include <cmath>

#include <cute/tensor.hpp>

#include <fa3gen/params.h>
#include <fa3gen/work.cuh>

namespace fa3gen {

constexpr int kRows = 2;  // of a thread
constexpr float kLog2e = 1.44269504088896341f;

struct RowStatistics {
  float row_max[kRows];  // of the scores as Q K^T gives them, unscaled
  float row_sum[kRows];  // of 2^((s - row_max) scale_log2), this thread's columns only
  float alpha[kRows];    // what the newest row_max asks O and row_sum to be multiplied by

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      row_max[r] = -INFINITY;
      row_sum[r] = 0.f;
    }
  }
};

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Max or sum over the 4 lanes that share a row.
template <class Combine>
__device__ __forceinline__ float reduce_quad(float x, Combine combine) {
  x = combine(x, __shfl_xor_sync(0xffffffff, x, 2));
  return combine(x, __shfl_xor_sync(0xffffffff, x, 1));
}

// A row whose keys are all masked so far has max -inf; subtracting it would give NaN.
__device__ __forceinline__ float subtrahend(float row_max, float scale_log2) {
  return row_max == -INFINITY ? 0.f : row_max * scale_log2;
}

// row_max = max(row_max, rowmax S), alpha = 2^((old - new) scale_log2).
template <class Scores>
__device__ __forceinline__ void update_max(Scores const& scores, RowStatistics& rows,
                                           float scale_log2) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float row_max = scores(r, 0);
#pragma unroll
    for (int c = 1; c < cute::size<1>(scores); ++c) {
      row_max = fmaxf(row_max, scores(r, c));
    }
    row_max = reduce_quad(row_max, [](float a, float b) { return fmaxf(a, b); });
    float const before = rows.row_max[r];
    rows.row_max[r] = fmaxf(before, row_max);
    rows.alpha[r] = exp2_approx(before * scale_log2 - subtrahend(rows.row_max[r], scale_log2));
  }
}

// S = 2^((S - row_max) scale_log2).
template <class Scores>
__device__ __forceinline__ void exponentiate(Scores&& scores, RowStatistics const& rows,
                                             float scale_log2) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float const shift = subtrahend(rows.row_max[r], scale_log2);
#pragma unroll
    for (int c = 0; c < cute::size<1>(scores); ++c) {
      scores(r, c) = exp2_approx(scores(r, c) * scale_log2 - shift);
    }
  }
}

// row_sum = row_sum alpha + rowsum S, over this thread's columns.
template <class Scores>
__device__ __forceinline__ void update_sum(Scores const& scores, RowStatistics& rows) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float sum = rows.row_sum[r] * rows.alpha[r];
#pragma unroll
    for (int c = 0; c < cute::size<1>(scores); ++c) {
      sum += scores(r, c);
    }
    rows.row_sum[r] = sum;
  }
}

// The assembler moves arithmetic, but no access to memory, past a wait for products: what must come
// before the wait is tied to a store that never happens, for a reason that the assembler cannot see.
__device__ __forceinline__ void settle(float value, float never_above) {
  asm volatile(
      "{\n"
      ".reg .pred never;\n"
      "setp.gt.f32 never, %0, %1;\n"
      "@never st.shared.f32 [%2], %0;\n"
      "}\n"
      :: "f"(value), "f"(never_above), "r"(0) : "memory");
}

// The sums are complete; none is negative.
__device__ __forceinline__ void settle_row_sum(RowStatistics const& rows) {
  settle(-fminf(rows.row_sum[0], rows.row_sum[1]), 0.f);
}

// The maxima are known; alpha is at most 1, but for rounding.
__device__ __forceinline__ void settle_alpha(RowStatistics const& rows) {
  settle(fmaxf(rows.alpha[0], rows.alpha[1]), 2.f);
}

// O = O alpha.
template <class Output, class Rows>
__device__ __forceinline__ void rescale(Output&& output, Rows const& rows) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < cute::size<1>(output); ++c) {
      output(r, c) *= rows.alpha[r];
    }
  }
}

// What scores were reduced by before 2^x was taken of them.
__device__ __forceinline__ float subtracted(RowStatistics const& rows, int r, float scale_log2) {
  return rows.row_max[r] * scale_log2;
}

// O = O / row_sum, 0 where no key is kept. Returns LSE = (subtracted + log2 row_sum) ln 2 in lse.
template <class Output, class Rows>
__device__ __forceinline__ void normalize(Output&& output, Rows const& rows, float scale_log2,
                                          float (&lse)[kRows]) {
  constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float const sum = reduce_quad(rows.row_sum[r], [](float a, float b) { return a + b; });
    bool const none = sum == 0.f;  // a NaN sum is passed on
    float const inverse = none ? 0.f : 1.f / sum;
    lse[r] = none ? -INFINITY : (subtracted(rows, r, scale_log2) + log2f(sum)) * kLn2;
#pragma unroll
    for (int c = 0; c < cute::size<1>(output); ++c) {
      output(r, c) *= inverse;
    }
  }
}

// The same with a sink, a score that takes part in the sum and brings no value: sink_log2 = sink log2(e).
template <class Output, class Rows>
__device__ __forceinline__ void normalize_with_sink(Output&& output, Rows const& rows, float scale_log2,
                                                    float sink_log2, float (&lse)[kRows]) {
  constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float const sum = reduce_quad(rows.row_sum[r], [](float a, float b) { return a + b; });
    bool const none = sum == 0.f;  // a NaN sum is passed on
    float const keys = subtracted(rows, r, scale_log2);
    float const top = none ? sink_log2 : fmaxf(keys, sink_log2);
    float const alpha = none ? 0.f : exp2_approx(keys - top);
    float const total = sum * alpha + (sink_log2 == -INFINITY ? 0.f : exp2_approx(sink_log2 - top));
    float const inverse = none ? 0.f : alpha / total;
    lse[r] = none ? sink_log2 * kLn2 : (top + log2f(total)) * kLn2;
#pragma unroll
    for (int c = 0; c < cute::size<1>(output); ++c) {
      output(r, c) *= inverse;
    }
  }
}

// LSE of this thread's rows to (batch, heads, seqlen_q), by the first lane of each quad.
__device__ __forceinline__ void store_lse(float const (&lse)[kRows], ForwardParams const& params,
                                          WorkTile const& tile, int row) {
  if (threadIdx.x % 4 != 0) {
    return;
  }
  float* const head = params.lse + static_cast<int64_t>(tile.batch * params.heads + tile.head) *
                                       params.seqlen_q;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row + 8 * r < params.seqlen_q) {
      head[row + 8 * r] = lse[r];
    }
  }
}

// The keys begin <= k < end of one query row.
struct RowKeys {
  int begin;
  int end;
};

// How many of a thread's 32 columns of 128 keys lie below a key, counted from the thread's first.
__device__ __forceinline__ int columns_below(int key) {
  int const within = min(max(key, 0), 128);
  return within / 8 * 2 + min(within % 8, 2);
}

constexpr int kWord = 32;  // columns, one bit each

// The bits of the columns from a thread's key `first` on whose keys a row keeps. kBegins: whether rows may
// keep other keys than those from 0 on.
template <bool kBegins>
__device__ __forceinline__ uint32_t interval_bits(RowKeys const& kept, int first) {
  int const begin = kBegins ? columns_below(kept.begin - first) : 0;
  int const end = columns_below(kept.end - first);
  uint32_t bits;
  asm("bmsk.clamp.b32 %0, %1, %2;" : "=r"(bits) : "r"(begin), "r"(max(end - begin, 0)));
  return bits;
}

// S = S where keys(row) holds the key, -inf elsewhere, from one bit a column. Element (0, 0) of the tile
// is (row, key).
template <bool kBegins, class Scores, class Keys>
__device__ __forceinline__ void mask_rows(Scores&& scores, int row, int key, Keys keys) {
  int const first = key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    RowKeys const kept = keys(row + 8 * r);
#pragma unroll
    for (int word = 0; word < cute::size<1>(scores); word += kWord) {
      uint32_t const bits = interval_bits<kBegins>(kept, first + word * 4);
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
