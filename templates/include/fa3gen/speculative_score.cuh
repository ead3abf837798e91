// Speculation on row maxima where scores go through a formula.
#pragma once

#include <fa3gen/elements.cuh>
#include <fa3gen/speculative_softmax.cuh>

namespace fa3gen {

// What fa3gen::speculate makes of formula(S): a biased formula gives exponents of 2, whose shift its base
// takes, and any other what the softmax multiplies.
template <class Element, class Scores, class Operand, class Formula>
__device__ __forceinline__ void speculate_scores(Scores&& scores, Operand& p, SpeculativeRows& rows,
                                                 float scale_log2, int key, Formula const& formula) {
  constexpr int kColumns = decltype(cute::size<1>(scores))::value;
  int const first = first_key(key);
  typename Formula::Base base[kRows] = {formula.base(0, first), formula.base(1, first)};
  float shift[kRows], odd_sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    shift[r] = rows.row_max[r] * scale_log2;
    if constexpr (Formula::kBiased) {
      base[r].bias -= shift[r];
    }
    rows.tile_sum[r] = odd_sum[r] = 0.f;
  }
  auto const power = [&](int r, int c, typename Formula::Column const& column) {
    int const offset = column_offset(c);
    float const x = formula(scores(r, c), r, base[r], column, first + offset, offset);
    return exp2_approx(Formula::kBiased ? x : x * scale_log2 - shift[r]);
  };
#pragma unroll
  for (int c = 0; c < kColumns; c += 2) {
    typename Formula::Column const even = formula.column(first + column_offset(c));
    typename Formula::Column const odd = formula.column(first + column_offset(c + 1));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      scores(r, c) = power(r, c, even);
      scores(r, c + 1) = power(r, c + 1, odd);
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

}  // namespace fa3gen
