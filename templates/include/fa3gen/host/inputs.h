// Inputs: tensors beside q, k, v that formulas look up. Their checks, and what a kernel is told of them.
#pragma once

#include <climits>
#include <cstdint>
#include <span>
#include <vector>

#include "fa3gen/host/error.h"
#include "fa3gen/host/tensor.h"
#include "fa3gen/params.h"

namespace fa3gen::host {

// Axes that a call gives its size; any other is a size itself.
enum Axis : int { kAxisBatch = -1, kAxisHeads = -2, kAxisKvHeads = -3, kAxisRow = -4, kAxisKey = -5 };

constexpr int kMaxInputs = 32;
constexpr int kMaxRank = 4;

// A declared input.
struct InputArgument {
  const char* name;
  const char* dtype;  // as specs have it
  ScalarType scalar;
  int rank;
  int axes[kMaxRank];
};

// The sizes that a call gives its axes.
struct CallSizes {
  int64_t batch, heads, kv_heads, seqlen_q, seqlen_k;

  int64_t of(int axis) const {
    switch (axis) {
      case kAxisBatch: return batch;
      case kAxisHeads: return heads;
      case kAxisKvHeads: return kv_heads;
      case kAxisRow: return seqlen_q;
      case kAxisKey: return seqlen_k;
      default: return axis;
    }
  }
};

// Device, dtype, rank and sizes; an axis that a call gives its size may have one element for all.
inline void check_input(const char* op, const InputArgument& declared, const Tensor& tensor, const CallSizes& sizes,
                        int device) {
  const Argument argument{op, declared.name, tensor};
  if (!tensor.is_cuda() || tensor.get_device_index() != device) {
    argument.broke("must be on cuda:", device, ", as q is");
  }
  if (tensor.scalar_type() != declared.scalar) {
    argument.broke("dtype must be ", declared.dtype, " (got ", torch::headeronly::toString(tensor.scalar_type()), ")");
  }
  if (tensor.dim() != declared.rank) {
    argument.broke("rank must be ", declared.rank, " (got ", tensor.dim(), ")");
  }
  for (int dim = 0; dim < declared.rank; ++dim) {
    const int64_t size = tensor.size(dim), expected = sizes.of(declared.axes[dim]);
    const bool broadcast = size == 1 && declared.axes[dim] < 0;
    if (size != expected && !broadcast) {
      argument.broke("size of dimension ", dim, " must be ", expected, " (got ", size, ")");
    }
    if (size > INT_MAX) {
      argument.broke("size of dimension ", dim, " must be below 2^31 (got ", size, ")");
    }
  }
}

// Kernels read along the last dimension, unless that is of heads or batches.
inline bool reads_along(const InputArgument& declared) {
  const int last = declared.rank > 0 ? declared.axes[declared.rank - 1] : kAxisBatch;
  return last > 0 || last == kAxisRow || last == kAxisKey;
}

// Kernels read two keys at a time.
inline bool is_even(const Tensor& tensor, int last, int64_t element_bytes) {
  bool even = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (2 * element_bytes) == 0;
  for (int dim = 0; dim < last; ++dim) {
    even &= tensor.size(dim) == 1 || tensor.stride(dim) % 2 == 0;
  }
  return even;
}

// The tensor itself where kernels can read it, else one copy: its last dimension contiguous and as long as the call
// has it, if they read along that, and rows of keys an even number apart.
inline Tensor readable_input(const InputArgument& declared, const Tensor& tensor, const CallSizes& call) {
  if (!reads_along(declared) || tensor.numel() == 0) {
    return tensor;
  }
  const int last = declared.rank - 1;
  const bool by_key = declared.axes[last] == kAxisKey;
  const int64_t length = call.of(declared.axes[last]);
  const bool along = tensor.size(last) == length && (length == 1 || tensor.stride(last) == 1);
  if (along && (!by_key || is_even(tensor, last, tensor.element_size()))) {
    return tensor;
  }
  const auto sizes = tensor.sizes();
  std::vector<int64_t> full(sizes.begin(), sizes.end());
  full[last] = by_key ? (length + 1) / 2 * 2 : length;
  Tensor copy = allocate(tensor, full, declared.scalar);
  Tensor rows = full[last] == length ? copy : torch::stable::narrow(copy, last, 0, length);
  torch::stable::copy_(rows, tensor);  // broadcasts
  return rows;
}

// Whether TMA can load tiles of rows and keys in place, an input's last two dimensions.
inline bool tiles_fit_tma(const Tensor& tensor, const CallSizes& call) {
  const int row = tensor.dim() - 2, key = tensor.dim() - 1;
  const bool whole = tensor.size(row) == call.seqlen_q && tensor.size(key) == call.seqlen_k;
  if (!whole || tensor.stride(key) != 1 || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kTmaAlignment != 0) {
    return false;
  }
  for (int dim = 0; dim <= row; ++dim) {
    const int64_t bytes = tensor.stride(dim) * tensor.element_size();
    const bool moves = bytes > 0 || dim < row;
    if (tensor.size(dim) > 1 && (!moves || bytes % kTmaAlignment != 0 || bytes >= kTmaMaxStride)) {
      return false;
    }
  }
  return true;
}

// The tensor itself where TMA can load its tiles, else one copy: whole in rows and keys, and of heads and batches that
// share theirs one.
inline Tensor readable_tiles(const InputArgument& declared, const Tensor& given, const CallSizes& call) {
  const int row = declared.rank - 2;
  Tensor tensor = given;
  if (tensor.numel() == 0 || tiles_fit_tma(tensor, call)) {
    return tensor;
  }
  std::vector<int64_t> full;
  for (int dim = 0; dim < row; ++dim) {
    if (tensor.stride(dim) == 0 && tensor.size(dim) > 1) {
      tensor = torch::stable::narrow(tensor, dim, 0, 1);
    }
    full.push_back(tensor.size(dim));
  }
  const int64_t unit = kTmaAlignment / static_cast<int64_t>(tensor.element_size());
  full.push_back(call.seqlen_q);
  full.push_back((call.seqlen_k + unit - 1) / unit * unit);
  Tensor copy = allocate(tensor, full, declared.scalar);
  Tensor keys = full.back() == call.seqlen_k ? copy : torch::stable::narrow(copy, row + 1, 0, call.seqlen_k);
  torch::stable::copy_(keys, tensor);  // broadcasts
  return keys;
}

// What the kernel is told. An empty input stands at `somewhere`, for what it gives is never kept.
inline InputTensor input_tensor(const Tensor& tensor, const void* somewhere) {
  const bool empty = tensor.numel() == 0;
  InputTensor input{.data = empty ? somewhere : tensor.const_data_ptr()};
  for (int dim = 0; dim < tensor.dim(); ++dim) {
    const bool one = empty || tensor.size(dim) == 1 || tensor.stride(dim) == 0;
    input.sizes[dim] = one ? 1 : static_cast<int>(tensor.size(dim));
    input.strides[dim] = one ? 0 : tensor.stride(dim);
  }
  return input;
}

}  // namespace fa3gen::host
