// Attention tensors (batch, seqlen, heads, head_dim): element types, checks, and what TMA can read in place.
#pragma once

#include <cuda.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <climits>
#include <cstdint>
#include <vector>

#include "fa3gen/host/error.h"

namespace fa3gen::host {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What an element type is called by torch and by TMA.
struct Element {
  const char* name;
  ScalarType scalar;
  CUtensorMapDataType tma;
  int bytes;
};

inline constexpr Element bf16{"bf16", ScalarType::BFloat16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2};
inline constexpr Element fp16{"fp16", ScalarType::Half, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2};

// Dimensions of an attention tensor.
enum Dim : int { kBatch = 0, kSeqlen = 1, kHeads = 2, kHeadDim = 3 };

// TMA's rules for addresses: multiples of 16 bytes, strides below 2^40 bytes.
constexpr int64_t kTmaAlignment = 16;
constexpr int64_t kTmaMaxStride = int64_t{1} << 40;

// An argument with its name, so that a failed rule can say which one broke it.
struct Argument {
  const char* op;
  const char* name;
  const Tensor& tensor;

  template <class... Parts>
  [[noreturn]] void broke(const Parts&... rule) const {
    fail(op, ": ", name, ": ", rule...);
  }
};

inline int64_t size_of(const Argument& argument, Dim dim) { return argument.tensor.size(dim); }

inline void check_size(const Argument& argument, Dim dim, const char* what, int64_t expected) {
  if (size_of(argument, dim) != expected) {
    argument.broke(what, " must be ", expected, " (got ", size_of(argument, dim), ")");
  }
}

// Rank 4, element type, CUDA device `device`, head dim, and sizes that fit the kernel's 32-bit parameters.
inline void check_tensor(const Argument& argument, const Element& element, int device, int64_t head_dim) {
  const Tensor& tensor = argument.tensor;
  if (!tensor.is_cuda() || tensor.get_device_index() != device) {
    argument.broke("must be on cuda:", device, ", as q is");
  }
  if (tensor.dim() != 4) {
    argument.broke("rank must be 4: (batch, seqlen, heads, head_dim) (got ", tensor.dim(), ")");
  }
  if (tensor.scalar_type() != element.scalar) {
    argument.broke("dtype must be ", element.name, " (got ", torch::headeronly::toString(tensor.scalar_type()), ")");
  }
  check_size(argument, kHeadDim, "head dim", head_dim);
  for (const Dim dim : {kBatch, kSeqlen, kHeads}) {
    if (tensor.size(dim) > INT_MAX) {
      argument.broke("size of dimension ", int{dim}, " must be below 2^31 (got ", tensor.size(dim), ")");
    }
  }
}

// Last dimension contiguous; base and every stride that is used a multiple of 16 bytes.
inline bool fits_tma(const Tensor& tensor, const Element& element) {
  if (tensor.stride(kHeadDim) != 1) {
    return false;
  }
  if (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kTmaAlignment != 0) {
    return false;
  }
  for (const Dim dim : {kBatch, kSeqlen, kHeads}) {
    const int64_t bytes = tensor.stride(dim) * element.bytes;
    if (tensor.size(dim) > 1 && (bytes % kTmaAlignment != 0 || bytes >= kTmaMaxStride)) {
      return false;
    }
  }
  return true;
}

// A new contiguous tensor on `like`'s device.
// NOTES: the C shim, not torch::stable::new_empty, which looks its op up by name at every call.
inline Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType scalar) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
  }
  AtenTensorHandle handle = nullptr;
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(scalar));
  const AOTITorchError status =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                               aoti_torch_device_type_cuda(), like.get_device_index(), &handle);
  if (status != 0) {
    fail("allocating an output of ", stride, " elements on cuda:", like.get_device_index(), " failed");
  }
  return Tensor(handle);
}

// The tensor itself where TMA can read it, else one contiguous copy.
inline Tensor readable_by_tma(const Tensor& tensor, const Element& element) {
  if (tensor.numel() == 0 || fits_tma(tensor, element)) {
    return tensor;
  }
  const auto sizes = tensor.sizes();
  Tensor copy = allocate(tensor, std::vector<int64_t>(sizes.begin(), sizes.end()), element.scalar);
  torch::stable::copy_(copy, tensor);
  return copy;
}

}  // namespace fa3gen::host
