// Speculation on row maxima where scores go through a formula.
#pragma once

#include <fa3gen/elements.cuh>
#include <fa3gen/score.cuh>
#include <fa3gen/speculative_softmax.cuh>

namespace fa3gen {

// S = 2^x, tile_sum = rowsum S, of x = exponent(r, c, column, pair).
template <class Scores, class Formula, class Exponent>
__device__ __forceinline__ void raise_scores(Scores& scores, SpeculativeRows& rows, int first, Formula const& formula,
                                             Exponent exponent) {
  constexpr int kColumns = decltype(cute::size<1>(scores))::value;
  float odd_sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows.tile_sum[r] = odd_sum[r] = 0.f;
  }
#pragma unroll
  for (int c = 0; c < kColumns; c += 2) {
    typename Formula::Column const even = formula.column(first + column_offset(c), column_offset(c));
    typename Formula::Column const odd = formula.column(first + column_offset(c + 1), column_offset(c + 1));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      typename Formula::Pair const pair = formula.pair(r, first + column_offset(c), column_offset(c));
      scores(r, c) = exp2_approx(exponent(r, c, even, pair));
      scores(r, c + 1) = exp2_approx(exponent(r, c + 1, odd, pair));
      rows.tile_sum[r] += scores(r, c);
      odd_sum[r] += scores(r, c + 1);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows.tile_sum[r] += odd_sum[r];
  }
}

// Whether the warp's maxima, as exponents of 2, lie where a soft cap's polynomial will do: so far below its end
// that an exponent beyond it shows in the sums, so far above its other end that what lies there does not count.
__device__ __forceinline__ bool within_short_tanh(float const (&shift)[kRows], float end) {
  bool within = true;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    within &= shift[r] <= end - 8.f && shift[r] >= 24.f - end;
  }
  return __all_sync(0xffffffff, within);
}

// The same of a formula over the maxima of the tiles before, which `shift` has as exponents of 2.
template <class Scores, class Formula>
__device__ __forceinline__ void raise_formula(Scores& scores, SpeculativeRows& rows, float const (&shift)[kRows],
                                              float multiplier, int first, Formula const& formula) {
  typename Formula::Base base[kRows] = {formula.base(0, first), formula.base(1, first)};
  if constexpr (Formula::kBiased) {
    base[0].bias -= shift[0];
    base[1].bias -= shift[1];
  }
  raise_scores(scores, rows, first, formula, [&](int r, int c, auto const& column, auto const& pair) {
    int const offset = column_offset(c);
    float const x = formula(scores(r, c), r, base[r], column, pair, c % 2, first + offset, offset);
    return Formula::kBiased ? x : x * multiplier - shift[r];
  });
}

// What fa3gen::speculate makes of formula(S): a biased formula gives exponents of 2, whose shift its base
// takes, and any other what the softmax multiplies.
template <class Scores, class Formula>
__device__ __forceinline__ void speculate_scores(Scores&& scores, SpeculativeRows& rows, float multiplier, int key,
                                                 Formula const& formula) {
  int const first = first_key(key);
  float shift[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    shift[r] = rows.row_max[r] * multiplier;
  }
  if constexpr (Formula::kCapped) {
    float const end = multiplier * ShortTanh::kTanhEnd;
    if (within_short_tanh(shift, end)) {
      ShortTanh const capped(formula.slope(), multiplier);
      raise_scores(scores, rows, first, formula, [&](int r, int c, auto const&, auto const&) {
        return capped(scores(r, c), shift[r]);
      });
#pragma unroll
      for (int r = 0; r < kRows; ++r) {  // an exponent beyond the end: the tile is done again
        rows.tile_sum[r] = rows.tile_sum[r] < exp2_approx(end - shift[r]) ? rows.tile_sum[r] : INFINITY;
      }
      return;
    }
  }
  auto const raise = [&](auto const& chosen) { raise_formula(scores, rows, shift, multiplier, first, chosen); };
  if constexpr (Formula::kHasFar) {
    constexpr int kKeys = decltype(cute::size<1>(scores))::value * 4;
    if (formula.template far<kKeys>(key, raise)) {
      return;
    }
  }
  raise(formula);
}

}  // namespace fa3gen
