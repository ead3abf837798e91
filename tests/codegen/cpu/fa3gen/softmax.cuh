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

inline float exp2_approx(float x) { return std::exp2(x); }

}  // namespace fa3gen
