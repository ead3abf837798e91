// Errors of the host side: each is a std::runtime_error, whose text torch shows to Python.
#pragma once

#include <cuda_runtime_api.h>

#include <sstream>
#include <stdexcept>

namespace fa3gen::host {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// `call` names the CUDA function that returned `status`.
inline void check_cuda(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    fail(call, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
  }
}

}  // namespace fa3gen::host
