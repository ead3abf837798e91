// What the generated structs and fa3gen/elements.cuh take from CUDA and CuTe, for a CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#define __device__
#define __forceinline__ inline
#define CUTE_DEVICE inline

struct uint2 {
  uint32_t x, y;
};
struct Index {
  int x;
};
inline Index threadIdx{}, blockIdx{}, gridDim{};

using std::abs, std::max, std::min;

// Of what all threads of a warp have alike.
inline int __shfl_sync(unsigned, int value, int) { return value; }
inline int __clz(int x) { return __builtin_clz(x); }
inline unsigned atomicInc(unsigned* counter, unsigned) { return ++*counter; }

struct __nv_bfloat16 {
  uint16_t bits;

  operator float() const {
    uint32_t const wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};
using __half = _Float16;

// The memory of inputs, and what may be loaded: from inside it.
struct Memory {
  void const* begin;
  void const* end;
};
inline std::vector<Memory> memories;

inline void const* readable(void const* from, size_t bytes) {
  char const* const first = static_cast<char const*>(from);
  for (Memory const& memory : memories) {
    if (memory.begin <= first && first + bytes <= memory.end) {
      return from;
    }
  }
  std::abort();
}

namespace cute {

template <int kMode, class T>
constexpr auto size(T const&) {
  return std::integral_constant<int, kMode == 0 ? T::kRows : T::kColumns>{};
}

}  // namespace cute
