// The functions that score formulas name.
#pragma once

#include <cmath>

#include <fa3gen/softmax.cuh>

namespace fa3gen {

__device__ __forceinline__ float exp_approx(float x) { return exp2_approx(x * kLog2e); }

// 1 - 2 / (e^2x + 1), within a few units of 2^-23. NOTES: tanh.approx.f32 takes one instruction of the
// special-function unit instead of two, but is off by up to 2^-11, which a soft cap multiplies by 30 to 50.
__device__ __forceinline__ float tanh_approx(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(exp_approx(2.f * x) + 1.f));
  return fmaf(-2.f, inverse, 1.f);
}

// factor * tanh(slope * x) - shift for arguments of tanh up to kEnd in size, without the special-function unit: an
// odd polynomial, of a relative error of 7e-7. It rises with x beyond its end, too. NOTES: with constants as
// immediates, slope * x apart, one instruction more makes it slower, though it reads fewer registers.
struct ShortTanh {
  static constexpr float kEnd = 0.75f, kTanhEnd = 0.63514895f;
  float k1, k3, k5, k7, k9;

  __device__ __forceinline__ ShortTanh(float slope, float factor) {
    float const square = slope * slope;
    float power = factor * slope;
    k1 = power * 0.99999946f;
    k3 = (power *= square) * -0.3332825f;
    k5 = (power *= square) * 0.13258983f;
    k7 = (power *= square) * -0.0500563f;
    k9 = (power *= square) * 0.01292963f;
  }

  __device__ __forceinline__ float operator()(float x, float shift) const {
    float const square = x * x;
    float const odd = fmaf(square, fmaf(square, fmaf(square, fmaf(square, k9, k7), k5), k3), k1);
    return fmaf(x, odd, -shift);
  }
};

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
