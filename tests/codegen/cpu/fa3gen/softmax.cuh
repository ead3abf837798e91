// What formulas and masks take from the softmax, for a CPU.
#pragma once

#include <cute/tensor.hpp>

#include <fa3gen/params.h>
#include <fa3gen/work.cuh>

namespace fa3gen {

constexpr int kRows = 2;
constexpr float kLog2e = 1.44269504088896341f;

struct RowKeys {
  int begin;
  int end;
};

constexpr int kWord = 32;

// Bit c: whether a row keeps the key of a thread's column c, its first key being `first`.
template <bool kBegins>
uint32_t interval_bits(RowKeys const& kept, int first) {
  uint32_t bits = 0;
  for (int c = 0; c < kWord; ++c) {
    int const k = first + c / 2 * 8 + c % 2;
    bits |= uint32_t{k < kept.end && (!kBegins || k >= kept.begin)} << c;
  }
  return bits;
}

inline float exp2_approx(float x) { return std::exp2(x); }

}  // namespace fa3gen
