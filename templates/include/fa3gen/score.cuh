// The functions that score formulas name.
#pragma once

#include <cmath>

#include <fa3gen/softmax.cuh>

namespace fa3gen {

constexpr float kLog2e = 1.44269504088896341f;

__device__ __forceinline__ float exp_approx(float x) { return exp2_approx(x * kLog2e); }

// 1 - 2 / (e^2x + 1), within a few units of 2^-23. NOTES: tanh.approx.f32 takes one instruction of the
// special-function unit instead of two, but is off by up to 2^-11, which a soft cap multiplies by 30 to 50.
__device__ __forceinline__ float tanh_approx(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(exp_approx(2.f * x) + 1.f));
  return fmaf(-2.f, inverse, 1.f);
}

// kFactor tanh(x) - shift of arguments up to kShortTanh in size, without the special-function unit: an odd
// polynomial, of a relative error of 7e-7. It rises with x beyond its end, too. The constants are immediates: beside
// products the register file has few reads to spare.
constexpr float kShortTanh = 0.75f, kTanhOfShort = 0.63514895f;

template <class Formula>
__device__ __forceinline__ float short_tanh(float x, float shift) {
  constexpr float kFactor = Formula::kFactorLog2;
  float const square = x * x;
  float odd = fmaf(square, kFactor * 0.01292963f, kFactor * -0.0500563f);
  odd = fmaf(square, odd, kFactor * 0.13258983f);
  odd = fmaf(square, odd, kFactor * -0.3332825f);
  odd = fmaf(square, odd, kFactor * 0.99999946f);
  return fmaf(x, odd, -shift);
}

__device__ __forceinline__ float log_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y * 0.693147180559945309f;
}

// The remainder with the divisor's sign, as in Python.
__device__ __forceinline__ float floor_mod(float x, float y) {
  return x - y * floorf(x / y);
}

}  // namespace fa3gen
