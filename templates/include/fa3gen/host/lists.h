// Lists of KV tiles: their storage, and the kernel that fills it before the forward kernel runs.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstdint>

#include "fa3gen/host/device_kernel.h"
#include "fa3gen/host/error.h"
#include "fa3gen/host/tensor.h"
#include "fa3gen/params.h"

namespace fa3gen::host {

// The kernel that lists KV tiles for the op's forward kernels.
struct ListsKernel {
  DeviceKernel& device;
  bool by_batch;  // batches have lists of their own
  bool by_head;   // query heads
};

constexpr int kListThreads = 1024;

// How the lists of a call lie in one tensor of int32: counts first, then tiles.
struct ListsLayout {
  int64_t lists;  // for each query tile
  int64_t m_blocks;
  int64_t room;

  ListsLayout(const ListsKernel& kernel, const ForwardParams& params, int block_n)
      : lists(int64_t{kernel.by_batch ? params.batch : 1} * (kernel.by_head ? params.heads : 1)),
        m_blocks(params.m_blocks),
        room(std::max<int64_t>(1, (int64_t{params.seqlen_k} + block_n - 1) / block_n)) {}

  int64_t count() const { return lists * m_blocks; }
  int64_t elements() const { return count() * (2 + room); }
};

inline TileLists tile_lists(const ListsKernel& kernel, const ListsLayout& layout, const ForwardParams& params,
                            const Tensor& storage) {
  int* const counts = static_cast<int*>(storage.mutable_data_ptr());
  const int head_stride = kernel.by_head ? 1 : 0;
  const int batch_stride = !kernel.by_batch ? 0 : kernel.by_head ? params.heads : 1;
  return {counts + 2 * layout.count(), counts, batch_stride, head_stride, static_cast<int>(layout.room)};
}

inline void check_plan(const char* op, const ListsLayout& layout, const Tensor& plan, int device) {
  const Argument argument{op, "plan", plan};
  if (!plan.is_cuda() || plan.get_device_index() != device) {
    argument.broke("must be on cuda:", device, ", as q is");
  }
  if (plan.scalar_type() != ScalarType::Int || plan.dim() != 1 || plan.numel() != layout.elements() ||
      !plan.is_contiguous()) {
    argument.broke("must be one for these lengths, batches and heads: ", layout.elements(), " int32");
  }
}

// Fills the lists that `arguments`, what the forward kernel takes by value, points to.
template <class Arguments>
void fill_lists(const ListsKernel& kernel, const ListsLayout& layout, Arguments& arguments, int block_m, int block_n,
                int device, cudaStream_t stream) {
  if (layout.lists > 65535) {
    fail("lists of KV tiles: batches times heads that the mask tells apart must be below 65536 (got ", layout.lists,
         ")");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(layout.m_blocks), static_cast<unsigned>(layout.lists));
  config.blockDim = dim3(kListThreads);
  config.stream = stream;
  void* values[] = {&arguments, &block_m, &block_n};
  check_cuda(cudaLaunchKernelExC(&config, kernel.device.on(device).function, values), "cudaLaunchKernelExC");
}

}  // namespace fa3gen::host
