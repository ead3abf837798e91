// TMA descriptors of attention tensors.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "fa3gen/host/error.h"
#include "fa3gen/host/tensor.h"
#include "fa3gen/params.h"

namespace fa3gen::host {

// The part of a tensor that one TMA instruction moves: rows of one head by columns of the head dim.
struct Box {
  int rows;
  int cols;
  int swizzle_bytes;  // 128, 64 or 32
};

enum class Access { kLoad, kStore };

inline CUtensorMapSwizzle swizzle_of(const Box& box) {
  switch (box.swizzle_bytes) {
    case 128: return CU_TENSOR_MAP_SWIZZLE_128B;
    case 64: return CU_TENSOR_MAP_SWIZZLE_64B;
    case 32: return CU_TENSOR_MAP_SWIZZLE_32B;
  }
  fail("a swizzle spans 128, 64 or 32 bytes (got ", box.swizzle_bytes, ")");
}

// The driver's encoder, without linking libcuda.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
               "cudaGetDriverEntryPointByVersion");
    if (found != cudaDriverEntryPointSuccess || function == nullptr) {
      fail("the CUDA driver has no cuTensorMapEncodeTiled");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// Descriptor of a tensor of 4 dimensions, fastest first. What a box reads past the end is zero.
inline CUtensorMap encode_tiles(const Argument& argument, const void* base, CUtensorMapDataType type,
                                const cuuint64_t (&sizes)[4], const cuuint64_t (&stride_bytes)[3], const Box& box,
                                Access access) {
  const cuuint32_t box_sizes[4] = {static_cast<cuuint32_t>(box.cols), static_cast<cuuint32_t>(box.rows), 1, 1};
  const cuuint32_t element_strides[4] = {1, 1, 1, 1};
  const auto promotion =
      access == Access::kLoad ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_NONE;

  CUtensorMap map;
  const CUresult status =
      tensor_map_encoder()(&map, type, 4, const_cast<void*>(base), sizes, stride_bytes, box_sizes, element_strides,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(box), promotion,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    argument.broke("cuTensorMapEncodeTiled returned ", static_cast<int>(status));
  }
  return map;
}

// Descriptor of a (batch, seqlen, heads, head_dim) tensor in TMA's order, fastest first: (head_dim, seqlen,
// heads, batch).
//
// `base` is the tensor's address or, where the tensor is empty, any that is valid: no size may be 0 and no address
// null, though nothing is read. A dimension of one element takes any stride, and torch's may be no multiple of 16.
inline CUtensorMap encode_tensor_map(const Argument& argument, const void* base, const Element& element,
                                     const Box& box, Access access) {
  constexpr Dim kOrder[] = {kHeadDim, kSeqlen, kHeads, kBatch};
  const Tensor& tensor = argument.tensor;
  const int64_t row_bytes = tensor.size(kHeadDim) * element.bytes;
  const int64_t unused_stride = (row_bytes + kTmaAlignment - 1) / kTmaAlignment * kTmaAlignment;

  cuuint64_t sizes[4];
  cuuint64_t stride_bytes[3];  // of all but the fastest
  for (int i = 0; i < 4; ++i) {
    const int64_t size = tensor.size(kOrder[i]);
    sizes[i] = static_cast<cuuint64_t>(size > 0 ? size : 1);
    if (i > 0) {
      const int64_t bytes = size > 1 ? tensor.stride(kOrder[i]) * element.bytes : unused_stride;
      stride_bytes[i - 1] = static_cast<cuuint64_t>(bytes);
    }
  }
  return encode_tiles(argument, base, element.tma, sizes, stride_bytes, box, access);
}

// Descriptor of an input (.., row, key) of two bytes an element, in TMA's order: (key, row, and up to two more). One
// that is empty stands at an address where nothing is kept.
inline CUtensorMap encode_input_map(const Argument& argument, const InputTensor& input, int rank, const Box& box) {
  cuuint64_t sizes[4] = {1, 1, 1, 1};
  cuuint64_t stride_bytes[3];
  const int64_t key_bytes = int64_t{2} * input.sizes[rank - 1];
  const int64_t unused_stride = (key_bytes + kTmaAlignment - 1) / kTmaAlignment * kTmaAlignment;
  for (int i = 0; i < 4; ++i) {
    const int dim = rank - 1 - i;
    sizes[i] = static_cast<cuuint64_t>(dim < 0 ? 1 : input.sizes[dim]);
    if (i > 0) {
      stride_bytes[i - 1] = static_cast<cuuint64_t>(sizes[i] > 1 ? input.strides[dim] * 2 : unused_stride);
    }
  }
  return encode_tiles(argument, input.data, CU_TENSOR_MAP_DATA_TYPE_UINT16, sizes, stride_bytes, box, Access::kLoad);
}

}  // namespace fa3gen::host
