// Counters from which the CTAs of a launch claim their work tiles.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "fa3gen/host/error.h"

namespace fa3gen::host {

// A zeroed counter for a launch on `stream`, that no launch beside it uses. A kernel leaves its counter at
// zero, so launches on one stream share one. It lives as long as the process.
// NOTES: keyed by the stream's id, which is never reused; its handle may be.
inline unsigned* work_counter(int device, cudaStream_t stream) {
  static std::mutex mutex;
  static std::map<std::pair<int, unsigned long long>, unsigned*> counters;
  unsigned long long id = 0;
  check_cuda(cudaStreamGetId(stream, &id), "cudaStreamGetId");
  const std::lock_guard<std::mutex> lock(mutex);
  unsigned*& counter = counters[{device, id}];
  if (counter == nullptr) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, sizeof *counter), "cudaMalloc");
    check_cuda(cudaMemsetAsync(memory, 0, sizeof *counter, stream), "cudaMemsetAsync");
    counter = static_cast<unsigned*>(memory);
  }
  return counter;
}

// Whether launches on `stream` are recorded into a CUDA graph.
inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace fa3gen::host
