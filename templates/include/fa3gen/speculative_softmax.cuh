// Online softmax of one warpgroup whose exponentials do not wait for the maxima.
//
// Any subtrahend gives the same O and LSE, as long as no power of 2 overflows and the largest do not
// vanish. So in a tile whose keys are all kept, powers of 2 are taken over the row maxima of the tiles
// before, and their sums tell afterwards whether that was right: it was, unless a thread's part of a
// row sums up to more than kLargestSum. Then the warp reads its rows of Q and the tile's keys again, from
// global memory, computes its scores by mma.sync, and follows their maxima: several times a step's work.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cute/tensor.hpp>

#include <fa3gen/mma.cuh>
#include <fa3gen/params.h>
#include <fa3gen/softmax.cuh>
#include <fa3gen/work.cuh>

namespace fa3gen {

// Of a thread's columns in one row: what P can hold, with room for the sums of it and of its products
// with V in fp32. bf16 has fp32's range, so that scores may exceed the maxima followed by about 55 (base
// 2), in fp16 by 9, before a tile is done again.
template <class Element>
constexpr float kLargestSum = std::is_same_v<Element, __half> ? 0x1p14f : 0x1p60f;

struct SpeculativeRows : RowStatistics {
  float tile_sum[kRows];  // rowsum of the tile's powers of 2, this thread's columns only
};

// S = 2^((S - row_max) scale_log2) with the maxima of the tiles before, P = S rounded, tile_sum =
// rowsum S. Infinite or NaN in rows that have kept no key before.
template <class Element, class Scores, class Operand>
__device__ __forceinline__ void speculate(Scores&& scores, Operand& p, SpeculativeRows& rows,
                                          float scale_log2) {
  constexpr int kColumns = decltype(cute::size<1>(scores))::value;
  float shift[kRows], odd_sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    shift[r] = rows.row_max[r] * scale_log2;
    rows.tile_sum[r] = odd_sum[r] = 0.f;
  }
#pragma unroll
  for (int c = 0; c < kColumns; c += 2) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      scores(r, c) = exp2_approx(scores(r, c) * scale_log2 - shift[r]);
      scores(r, c + 1) = exp2_approx(scores(r, c + 1) * scale_log2 - shift[r]);
      rows.tile_sum[r] += scores(r, c);
      odd_sum[r] += scores(r, c + 1);
      p(c / 2 * kRows + r) = round_pair<Element>(scores(r, c), scores(r, c + 1));
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows.tile_sum[r] += odd_sum[r];
  }
}

// Whether some power of 2 of the warp's rows is too large, or their row had no maximum.
template <class Element>
__device__ __forceinline__ bool overshot(SpeculativeRows const& rows) {
  bool const right =
      rows.tile_sum[0] < kLargestSum<Element> && rows.tile_sum[1] < kLargestSum<Element>;
  return __any_sync(0xffffffff, !right);  // NaN is not right
}

__device__ __forceinline__ void add_tile_sum(SpeculativeRows& rows) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows.row_sum[r] += rows.tile_sum[r];
  }
}

// d += a b of one warp, 16 x 8 x 16.
template <class Element>
__device__ __forceinline__ void warp_mma(float* d, uint32_t const (&a)[4], uint2 b) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  }
}

// S = Q K^T of this warp's 16 rows, from global memory. `row`: the warpgroup's first, `key`: the
// tile's first key. The accumulator of mma.sync has the layout of wgmma's. A product sums over its
// columns in any order, so that a lane takes 4 in a row of each 16, of Q and of K alike.
template <class Element, int kHeadDim, class Accumulator>
__device__ __forceinline__ void recompute_scores(Accumulator& scores, ForwardParams const& params,
                                                 WorkTile tile, int row, int key) {
  constexpr int kBlock = 16;  // columns of a product
  constexpr int kGroup = 8;   // keys of one
  // Addresses follow from here alone: the compiler would find them before the loop over KV tiles, and
  // keep them in registers all the while.
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  asm volatile("" : "+r"(tile.batch), "+r"(tile.head), "+r"(tile.kv_head), "+r"(row), "+r"(key));
  int const column = thread % 4 * 4, line = thread % 32 / 4;
  auto const at = [column](GlobalTensor const& from, int batch, int head, int position) {
    return static_cast<Element const*>(from.data) + batch * from.batch_stride +
           head * from.head_stride + position * from.row_stride + column;
  };
  row += thread % 128 / 32 * 16 + line;
  int const last = params.seqlen_q - 1;  // rows past it are nobody's
  Element const* const upper = at(params.q, tile.batch, tile.head, min(row, last));
  Element const* const lower = at(params.q, tile.batch, tile.head, min(row + 8, last));
  Element const* const keys = at(params.k, tile.batch, tile.kv_head, key + line);
  cute::clear(scores);
#pragma unroll 1
  for (int block = 0; block < kHeadDim; block += kBlock) {
    bool const inside = kHeadDim % kBlock == 0 || block + column < kHeadDim;
    auto const load = [inside](Element const* from) {
      return inside ? *reinterpret_cast<uint2 const*>(from) : uint2{0, 0};
    };
    uint2 const a0 = load(upper + block), a1 = load(lower + block);
    uint32_t const a[4] = {a0.x, a1.x, a0.y, a1.y};
    Element const* group_keys = keys + block;
#pragma unroll
    for (int group = 0; group < cute::size<2>(scores); ++group) {
      warp_mma<Element>(&scores(0, 0, group), a, load(group_keys));
      group_keys += kGroup * params.k.row_stride;
    }
  }
}

}  // namespace fa3gen
