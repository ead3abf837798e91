// Lists of KV tiles: which a query tile visits, and which of them it keeps whole.
//
// A warp looks at one pair of tiles at a time. Most pairs are decided by the least and greatest positions and
// looked-up values of their rows and keys, in the arithmetic of intervals; the others by their elements.
#pragma once

#include <climits>
#include <cstdint>

#include <fa3gen/elements.cuh>
#include <fa3gen/params.h>
#include <fa3gen/work.cuh>

namespace fa3gen {

constexpr int kLanes = 32;
constexpr int kListWarps = 32;  // of a CTA, which makes one list

// The integers that an expression may give, at least and at most. 64 bits: sums of any two of 32 are exact.
struct Span {
  int64_t least;
  int64_t most;

  __device__ __forceinline__ Span(int64_t value) : least(value), most(value) {}
  __device__ __forceinline__ Span(int64_t least, int64_t most) : least(least), most(most) {}
};

__device__ __forceinline__ Span operator+(Span a, Span b) { return {a.least + b.least, a.most + b.most}; }
__device__ __forceinline__ Span operator-(Span a, Span b) { return {a.least - b.most, a.most - b.least}; }
__device__ __forceinline__ Span operator-(Span a) { return {-a.most, -a.least}; }
__device__ __forceinline__ Span operator*(Span a, Span b) {
  int64_t const p = a.least * b.least, q = a.least * b.most, r = a.most * b.least, s = a.most * b.most;
  return {::min(::min(p, q), ::min(r, s)), ::max(::max(p, q), ::max(r, s))};
}
__device__ __forceinline__ Span min(Span a, Span b) { return {::min(a.least, b.least), ::min(a.most, b.most)}; }
__device__ __forceinline__ Span max(Span a, Span b) { return {::max(a.least, b.least), ::max(a.most, b.most)}; }
__device__ __forceinline__ Span abs(Span a) {
  int64_t const most = ::max(-a.least, a.most);
  return {a.least > 0 ? a.least : a.most < 0 ? -a.most : 0, most};
}

// Of divisors that are positive.
__device__ __forceinline__ int64_t floor_quotient(int64_t a, int b) { return a / b - (a % b < 0); }
__device__ __forceinline__ Span floor_div(Span a, int b) {
  return {floor_quotient(a.least, b), floor_quotient(a.most, b)};
}
__device__ __forceinline__ Span floor_mod(Span a, int b) {
  int64_t const quotient = floor_quotient(a.least, b);
  if (quotient == floor_quotient(a.most, b)) {
    return {a.least - quotient * b, a.most - quotient * b};
  }
  return {0, b - 1};
}

// Whether a condition holds somewhere, as far as is known, and everywhere, as is known.
struct Truth {
  bool somewhere;
  bool everywhere;

  Truth() = default;
  __device__ __forceinline__ Truth(bool value) : somewhere(value), everywhere(value) {}
  __device__ __forceinline__ Truth(bool somewhere, bool everywhere) : somewhere(somewhere), everywhere(everywhere) {}
};

__device__ __forceinline__ Truth operator<=(Span a, Span b) { return {a.least <= b.most, a.most <= b.least}; }
__device__ __forceinline__ Truth operator<(Span a, Span b) { return {a.least < b.most, a.most < b.least}; }
__device__ __forceinline__ Truth operator==(Span a, Span b) {
  return {a.least <= b.most && b.least <= a.most, a.least == a.most && b.least == b.most && a.least == b.least};
}
__device__ __forceinline__ Truth operator!=(Span a, Span b) {
  Truth const equal = a == b;
  return {!equal.everywhere, !equal.somewhere};
}
__device__ __forceinline__ Truth operator&&(Truth a, Truth b) {
  return {a.somewhere && b.somewhere, a.everywhere && b.everywhere};
}
__device__ __forceinline__ Truth operator||(Truth a, Truth b) {
  return {a.somewhere || b.somewhere, a.everywhere || b.everywhere};
}

// The span of value(i) for begin <= i < end, by all lanes of a warp.
template <class Value>
__device__ __forceinline__ Span warp_span(int begin, int end, Value value) {
  int least = INT_MAX, most = INT_MIN;
#pragma unroll 4
  for (int i = begin + threadIdx.x % kLanes; i < end; i += kLanes) {
    int const found = value(i);
    least = ::min(least, found);
    most = ::max(most, found);
  }
  return {__reduce_min_sync(0xffffffff, least), __reduce_max_sync(0xffffffff, most)};
}

// The element-wise truth of a pair of tiles, by all lanes of a warp: rows row .. row_end - 1, a lane's 32 apart, and
// keys key .. key_end - 1. Ends as soon as both are settled.
template <class Mask, class Params>
__device__ __forceinline__ Truth look(WorkTile const& tile, int row, int row_end, int key, int key_end,
                                      Params const& params) {
  constexpr int kKeys = 16;  // between two votes
  Truth found{false, true};
  for (int first = row; first < row_end; first += kLanes) {
    int const own = ::min(first + static_cast<int>(threadIdx.x % kLanes), row_end - 1);
    Mask const mask(tile, own, params);
    for (int begin = key; begin < key_end; begin += kKeys) {
      bool some = false, all = true;
      int const end = ::min(begin + kKeys, key_end);
      for (int pair_key = begin; pair_key < end; pair_key += 2) {
        typename Mask::Pair const pair = mask.pair(0, pair_key, 0);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          int const k = pair_key + i;
          bool const kept = mask(0, mask.base(0, k), mask.column(k, 0), pair, i, k, 0);
          some |= kept;
          all &= kept;
        }
      }
      found.somewhere |= __any_sync(0xffffffff, some);
      found.everywhere &= __all_sync(0xffffffff, all);
      if (found.somewhere && !found.everywhere) {
        return found;
      }
    }
  }
  return found;
}

// Makes the list of a query tile from classify(tile) -> Truth, a warp's answer for one KV tile of begin .. end - 1.
template <class Classify>
__device__ __forceinline__ void make_list(TileLists const& lists, int list, int begin, int end, Classify classify) {
  constexpr int kTiles = 2048;  // between two rounds of writing
  __shared__ Truth found[kTiles];
  int* const tiles = lists.tiles + static_cast<int64_t>(list) * lists.room;
  int const warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  uint32_t const lanes_before = (1u << lane) - 1;
  int whole = 0, masked = 0;  // of the first warp, which writes
  for (int first = begin; first < end; first += kTiles) {
    int const count = ::min(kTiles, end - first);
    for (int i = warp; i < count; i += kListWarps) {
      Truth const truth = classify(first + i);
      if (lane == 0) {
        found[i] = truth;
      }
    }
    __syncthreads();
    for (int i = 0; warp == 0 && i < count; i += kLanes) {
      Truth const truth = i + lane < count ? found[i + lane] : Truth(false);
      bool const some = truth.somewhere && !truth.everywhere;
      uint32_t const wholes = __ballot_sync(0xffffffff, truth.everywhere), others = __ballot_sync(0xffffffff, some);
      if (truth.everywhere) {
        tiles[whole + __popc(wholes & lanes_before)] = first + i + lane;
      } else if (some) {
        tiles[lists.room - 1 - masked - __popc(others & lanes_before)] = first + i + lane;
      }
      whole += __popc(wholes);
      masked += __popc(others);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    lists.counts[2 * list] = whole;
    lists.counts[2 * list + 1] = masked;
  }
}

}  // namespace fa3gen
