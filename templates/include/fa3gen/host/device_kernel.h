// One kernel of an embedded cubin: loaded once a process, made ready once a device.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <mutex>

#include "fa3gen/host/error.h"

namespace fa3gen::host {

// While alive, this thread may do what CUDA forbids during a global-mode stream capture (loading a kernel
// allocates). Nothing done here touches the captured stream.
class RelaxedCapture {
 public:
  RelaxedCapture() { swap(); }
  ~RelaxedCapture() { swap(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void swap() { cudaThreadExchangeStreamCaptureMode(&mode_); }

  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class DeviceKernel {
 public:
  DeviceKernel(const void* cubin, const char* symbol, int smem_bytes)
      : cubin_(cubin), symbol_(symbol), smem_bytes_(smem_bytes) {}

  struct Ready {
    const void* function;  // what cudaLaunchKernelExC takes
    int sm_count;
  };

  // The kernel on `device`, which must be the current one.
  Ready on(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (device < 0 || device >= kMaxDevices) {
      fail("device index must be in [0, ", kMaxDevices, ") (got ", device, ")");
    }
    if (sm_count_[device] == 0) {
      const RelaxedCapture relaxed;
      if (kernel_ == nullptr) {
        load();
      }
      sm_count_[device] = prepare(device);
    }
    return {reinterpret_cast<const void*>(kernel_), sm_count_[device]};
  }

 private:
  static constexpr int kMaxDevices = 64;

  void load() {
    cudaLibrary_t library = nullptr;
    check_cuda(cudaLibraryLoadData(&library, cubin_, nullptr, nullptr, 0, nullptr, nullptr, 0),
               "cudaLibraryLoadData");
    check_cuda(cudaLibraryGetKernel(&kernel_, library, symbol_), "cudaLibraryGetKernel");
  }

  // Checks the device and allows the kernel its shared memory there; returns the number of SMs.
  int prepare(int device) const {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    if (major != 9 || minor != 0) {
      fail("cuda:", device, " must have compute capability 9.0 (got ", major, ".", minor, ")");
    }
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel_),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes_),
               "cudaFuncSetAttribute");
    return attribute(cudaDevAttrMultiProcessorCount, device);
  }

  static int attribute(cudaDeviceAttr name, int device) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
    return value;
  }

  const void* cubin_;
  const char* symbol_;
  int smem_bytes_;
  std::mutex mutex_;
  cudaKernel_t kernel_ = nullptr;
  int sm_count_[kMaxDevices] = {};  // 0: not ready yet
};

// torch's current stream on `device`.
// NOTES: the getter lives in libtorch_cuda, which this library must not link (it also loads under a torch
// without CUDA), and a weak reference to it stays null; so it is looked up in the library torch has loaded.
inline cudaStream_t current_stream(int device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = torch_cuda == nullptr ? nullptr : dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
    if (symbol == nullptr) {
      fail("this torch has no CUDA: aoti_torch_get_current_cuda_stream was not found in libtorch_cuda.so");
    }
    return reinterpret_cast<Getter>(symbol);
  }();
  void* stream = nullptr;
  if (getter(device, &stream) != 0) {
    fail("aoti_torch_get_current_cuda_stream failed on cuda:", device);
  }
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fa3gen::host
