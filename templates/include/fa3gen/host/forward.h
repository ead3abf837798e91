// A forward call: check the arguments, describe the tensors to TMA, launch.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "fa3gen/host/device_kernel.h"
#include "fa3gen/host/error.h"
#include "fa3gen/host/inputs.h"
#include "fa3gen/host/lists.h"
#include "fa3gen/host/tensor.h"
#include "fa3gen/host/tensor_map.h"
#include "fa3gen/host/work_counter.h"
#include "fa3gen/params.h"

namespace fa3gen::host {

constexpr int64_t kAnyKeys = INT64_MAX;

// All that sets one forward kernel apart from another on the host side.
struct ForwardKernel {
  DeviceKernel& device;
  int64_t max_keys;  // of a call
  int block_m;  // query rows of a work tile
  int block_n;  // keys of a KV tile
  int threads;  // of a CTA
  int smem_bytes;
  int cta_per_sm;
  bool persistent;     // a CTA runs many work tiles, else one
  bool claims;         // CTAs claim their work tiles from a counter
  bool longest_first;  // work tiles are ordered longest first inside groups of heads that share the L2
  Box q;
  Box k;
  Box v;
  Box o;
  Box bias{};
};

// A torch op, and its kernels in the order in which a call tries them; the last one takes any call.
struct ForwardOp {
  const char* name;  // as torch has it
  Element element;
  int head_dim_qk;
  int head_dim_v;
  double score_factor;    // that scores are multiplied by, beside log2(e)
  bool score_is_product;  // and by the softmax scale, which else the score formula takes
  std::span<const InputArgument> inputs;
  int bias = -1;             // the input that is added to products; -1 for none
  double bias_factor = 0.0;  // that it is multiplied by
  const ListsKernel* lists;  // lists KV tiles before the others run; null if they need no lists
  std::span<const ForwardKernel> kernels;

  const ForwardKernel& kernel_for(int64_t keys) const {
    return *std::find_if(kernels.begin(), kernels.end() - 1,
                         [keys](const ForwardKernel& kernel) { return keys <= kernel.max_keys; });
  }
};

// The tensors of one call.
struct ForwardTensors {
  Tensor q;    // (batch, seqlen_q, heads, head_dim_qk)
  Tensor k;    // (batch, seqlen_k, heads_k, head_dim_qk)
  Tensor v;    // (batch, seqlen_k, heads_k, head_dim_v)
  Tensor out;  // (batch, seqlen_q, heads, head_dim_v)
  Tensor lse;  // (batch, heads, seqlen_q) fp32
  std::vector<Tensor> inputs;
  std::optional<Tensor> plan;  // lists of KV tiles that were made before
};

// What the kernel takes by value: the first of it, or all up to the last of the op's inputs.
struct ForwardArguments {
  ForwardParams params;
  TileLists lists;
  InputTensor inputs[kMaxInputs];
};
static_assert(offsetof(ForwardArguments, lists) == sizeof(ForwardParams));
static_assert(offsetof(ForwardArguments, inputs) == sizeof(ForwardParams) + sizeof(TileLists));

inline void check_inputs(const ForwardOp& op, const CallSizes& sizes, const std::vector<Tensor>& inputs, int device) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    check_input(op.name, op.inputs[i], inputs[i], sizes, device);
  }
}

inline void check_arguments(const ForwardOp& op, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                            const std::vector<Tensor>& inputs) {
  const Argument arg_q{op.name, "q", q}, arg_k{op.name, "k", k}, arg_v{op.name, "v", v};
  const int device = q.get_device_index();
  check_tensor(arg_q, op.element, device, op.head_dim_qk);
  check_tensor(arg_k, op.element, device, op.head_dim_qk);
  check_tensor(arg_v, op.element, device, op.head_dim_v);
  check_size(arg_k, kBatch, "batch", q.size(kBatch));
  check_size(arg_v, kBatch, "batch", q.size(kBatch));
  check_size(arg_v, kSeqlen, "seqlen", k.size(kSeqlen));
  check_size(arg_v, kHeads, "heads", k.size(kHeads));
  const int64_t heads = q.size(kHeads), heads_k = k.size(kHeads);
  if (heads_k == 0 ? heads != 0 : heads % heads_k != 0) {
    arg_k.broke("heads must divide those of q, ", heads, " (got ", heads_k, ")");
  }
  const float scale_log2 = static_cast<float>(scale * M_LOG2E);
  if (!(std::isnormal(scale_log2) && scale_log2 > 0)) {
    fail(op.name, ": scale must be finite and positive in fp32 (got ", scale, ")");
  }
  check_inputs(op, {q.size(kBatch), heads, heads_k, q.size(kSeqlen), k.size(kSeqlen)}, inputs, device);
}

inline std::vector<Tensor> readable_inputs(const ForwardOp& op, const std::vector<Tensor>& inputs,
                                           const CallSizes& sizes) {
  std::vector<Tensor> readable;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool tiles = static_cast<int>(i) == op.bias;
    readable.push_back((tiles ? readable_tiles : readable_input)(op.inputs[i], inputs[i], sizes));
  }
  return readable;
}

// Outputs that the caller brought. They are written in place, so that a copy is no remedy here.
inline void check_outputs(const ForwardOp& op, const ForwardTensors& tensors) {
  const Tensor &q = tensors.q, &out = tensors.out, &lse = tensors.lse;
  const Argument arg_out{op.name, "out", out}, arg_lse{op.name, "lse", lse};
  const int device = q.get_device_index();
  check_tensor(arg_out, op.element, device, op.head_dim_v);
  check_size(arg_out, kBatch, "batch", q.size(kBatch));
  check_size(arg_out, kSeqlen, "seqlen", q.size(kSeqlen));
  check_size(arg_out, kHeads, "heads", q.size(kHeads));
  if (out.numel() > 0 && !fits_tma(out, op.element)) {
    arg_out.broke("last dimension must be contiguous, base and strides multiples of ", kTmaAlignment, " bytes");
  }
  for (const Dim dim : {kBatch, kSeqlen, kHeads}) {
    if (out.size(dim) > 1 && out.stride(dim) == 0) {
      arg_out.broke("must not be expanded: dimension ", int{dim}, " has stride 0");
    }
  }
  if (!lse.is_cuda() || lse.get_device_index() != device || lse.scalar_type() != ScalarType::Float) {
    arg_lse.broke("must be fp32 on cuda:", device);
  }
  const bool shaped = lse.dim() == 3 && lse.size(0) == q.size(kBatch) && lse.size(1) == q.size(kHeads) &&
                      lse.size(2) == q.size(kSeqlen);
  if (!shaped || !lse.is_contiguous()) {
    arg_lse.broke("must be contiguous of shape (batch, heads, seqlen_q) = (", q.size(kBatch), ", ", q.size(kHeads),
                  ", ", q.size(kSeqlen), ")");
  }
}

// Groups of heads scheduled together, so that their K and V stay in the L2 cache while their query tiles run: as many
// as it takes, of one size. What is left for no whole group joins the last one: a small last group would end on its
// longest tiles alone.
inline int head_groups(const ForwardOp& op, const ForwardKernel& kernel, const ForwardParams& params) {
  constexpr int64_t kL2Bytes = int64_t{32} << 20;  // of Hopper's 50 MiB
  const int64_t all_heads = int64_t{params.batch} * params.heads;
  if (!kernel.longest_first) {
    return static_cast<int>(all_heads);
  }
  const int64_t row_bytes = int64_t{op.element.bytes} * (op.head_dim_qk + op.head_dim_v);
  const int64_t kv_head_bytes = std::max<int64_t>(1, row_bytes * params.seqlen_k);
  const int64_t kv_heads = kL2Bytes / kv_head_bytes;
  const int64_t resident = std::max<int64_t>(1, kv_heads * params.heads_per_kv);  // query heads of a KV head share it
  const int64_t size = all_heads / ((all_heads + resident - 1) / resident);
  return static_cast<int>(all_heads / size);
}

inline GlobalTensor global_tensor(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(kBatch), tensor.stride(kSeqlen), tensor.stride(kHeads)};
}

// The sizes of a call, and its work tiles.
inline ForwardParams size_params(const ForwardOp& op, const ForwardKernel& kernel, const CallSizes& sizes) {
  ForwardParams params{};
  params.batch = static_cast<int>(sizes.batch);
  params.heads = static_cast<int>(sizes.heads);
  params.heads_per_kv = params.heads / static_cast<int>(sizes.kv_heads);
  params.seqlen_q = static_cast<int>(sizes.seqlen_q);
  params.seqlen_k = static_cast<int>(sizes.seqlen_k);
  const int64_t m_blocks = (int64_t{params.seqlen_q} + kernel.block_m - 1) / kernel.block_m;
  const int64_t all_heads = int64_t{params.batch} * params.heads;
  if (all_heads > INT_MAX / m_blocks) {
    fail(op.name, ": work tiles must be fewer than 2^31 (got ", all_heads, " heads of ", m_blocks, " tiles each)");
  }
  params.m_blocks = static_cast<int>(m_blocks);
  params.work_tiles = static_cast<int>(m_blocks * all_heads);
  return params;
}

inline CallSizes call_sizes(const Tensor& q, const Tensor& k) {
  return {q.size(kBatch), q.size(kHeads), k.size(kHeads), q.size(kSeqlen), k.size(kSeqlen)};
}

inline ForwardParams make_params(const ForwardOp& op, const ForwardKernel& kernel, const ForwardTensors& tensors,
                                 double scale) {
  ForwardParams params = size_params(op, kernel, call_sizes(tensors.q, tensors.k));
  params.lse = static_cast<float*>(tensors.lse.mutable_data_ptr());
  params.scale_log2 = static_cast<float>(op.score_factor * (op.score_is_product ? scale : 1.0) * M_LOG2E);
  params.scale = static_cast<float>(scale);
  params.bias_factor = static_cast<float>(op.bias_factor / scale);
  params.groups = head_groups(op, kernel, params);
  params.heads_per_group = params.batch * params.heads / params.groups;
  params.q = global_tensor(tensors.q);
  params.k = global_tensor(tensors.k);
  return params;
}

inline void point_to_inputs(ForwardArguments& arguments, const std::vector<Tensor>& inputs, const void* somewhere) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    arguments.inputs[i] = input_tensor(inputs[i], somewhere);
  }
}

// Lists of KV tiles in a new tensor.
inline Tensor make_lists(const ForwardOp& op, const ForwardKernel& kernel, ForwardArguments& arguments,
                         const Tensor& like, cudaStream_t stream) {
  const ListsLayout layout(*op.lists, arguments.params, kernel.block_n);
  const Tensor storage = allocate(like, {layout.elements()}, ScalarType::Int);
  arguments.lists = tile_lists(*op.lists, layout, arguments.params, storage);
  fill_lists(*op.lists, layout, arguments, kernel.block_m, kernel.block_n, like.get_device_index(), stream);
  return storage;
}

// Launches on torch's current stream. The tensors are checked, and TMA can address them.
inline void launch(const ForwardOp& op, const ForwardTensors& tensors, double scale) {
  if (tensors.lse.numel() == 0) {
    return;  // no query row
  }
  const int device = tensors.q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const ForwardKernel& kernel = op.kernel_for(tensors.k.size(kSeqlen));
  const DeviceKernel::Ready ready = kernel.device.on(device);

  // TMA descriptors. K and V may be empty; the kernel then loads neither, or rows past the first, which are zero.
  const Element& element = op.element;
  const void* base_q = tensors.q.const_data_ptr();
  const void* base_k = tensors.k.numel() > 0 ? tensors.k.const_data_ptr() : base_q;
  const void* base_v = tensors.v.numel() > 0 ? tensors.v.const_data_ptr() : base_q;
  CUtensorMap tma_q = encode_tensor_map({op.name, "q", tensors.q}, base_q, element, kernel.q, Access::kLoad);
  CUtensorMap tma_k = encode_tensor_map({op.name, "k", tensors.k}, base_k, element, kernel.k, Access::kLoad);
  CUtensorMap tma_v = encode_tensor_map({op.name, "v", tensors.v}, base_v, element, kernel.v, Access::kLoad);
  CUtensorMap tma_o = encode_tensor_map({op.name, "out", tensors.out}, tensors.out.mutable_data_ptr(), element,
                                        kernel.o, Access::kStore);

  ForwardArguments forward_arguments;
  ForwardParams& params = forward_arguments.params = make_params(op, kernel, tensors, scale);
  point_to_inputs(forward_arguments, tensors.inputs, base_q);
  const int resident_ctas = ready.sm_count * kernel.cta_per_sm;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kernel.persistent ? std::min(resident_ctas, params.work_tiles) : params.work_tiles);
  config.blockDim = dim3(kernel.threads);
  config.dynamicSmemBytes = kernel.smem_bytes;
  config.stream = current_stream(device);
  Tensor graph_counter;  // a graph may replay beside any stream: its launches have counters of their own
  if (kernel.claims && is_capturing(config.stream)) {
    graph_counter = allocate(tensors.q, {1}, ScalarType::Int);
    params.next_work = static_cast<unsigned*>(graph_counter.mutable_data_ptr());
    check_cuda(cudaMemsetAsync(params.next_work, 0, sizeof *params.next_work, config.stream), "cudaMemsetAsync");
  } else if (kernel.claims) {
    params.next_work = work_counter(device, config.stream);
  }
  std::optional<Tensor> lists = tensors.plan;
  cudaLaunchAttribute start_early{};
  if (op.lists != nullptr && lists) {
    const ListsLayout layout(*op.lists, params, kernel.block_n);
    check_plan(op.name, layout, *lists, device);
    forward_arguments.lists = tile_lists(*op.lists, layout, params, *lists);
  } else if (op.lists != nullptr) {
    lists = make_lists(op, kernel, forward_arguments, tensors.q, config.stream);
    start_early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    start_early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &start_early;
    config.numAttrs = 1;
  }
  CUtensorMap tma_bias;
  if (op.bias >= 0) {
    const InputArgument& declared = op.inputs[op.bias];
    tma_bias = encode_input_map({op.name, declared.name, tensors.inputs[op.bias]}, forward_arguments.inputs[op.bias],
                                declared.rank, kernel.bias);
  }
  // A kernel without a bias takes one argument less, and the last is not read.
  void* const fifth = op.bias >= 0 ? static_cast<void*>(&tma_bias) : &forward_arguments;
  void* arguments[] = {&tma_q, &tma_k, &tma_v, &tma_o, fifth, &forward_arguments};
  check_cuda(cudaLaunchKernelExC(&config, ready.function, arguments), "cudaLaunchKernelExC");
}

// out and lse in new tensors.
inline std::tuple<Tensor, Tensor> forward(const ForwardOp& op, const Tensor& q, const Tensor& k, const Tensor& v,
                                          double scale, const std::vector<Tensor>& inputs,
                                          const std::optional<Tensor>& plan = {}) {
  check_arguments(op, q, k, v, scale, inputs);
  const int64_t batch = q.size(kBatch), seqlen_q = q.size(kSeqlen), heads = q.size(kHeads);
  const Element& element = op.element;
  const ForwardTensors tensors{
      readable_by_tma(q, element),
      readable_by_tma(k, element),
      readable_by_tma(v, element),
      allocate(q, {batch, seqlen_q, heads, op.head_dim_v}, element.scalar),
      allocate(q, {batch, heads, seqlen_q}, ScalarType::Float),
      readable_inputs(op, inputs, call_sizes(q, k)),
      plan,
  };
  launch(op, tensors, scale);
  return {tensors.out, tensors.lse};
}

// out and lse in the caller's tensors.
inline void forward_out(const ForwardOp& op, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                        const std::vector<Tensor>& inputs, const Tensor& out, const Tensor& lse,
                        const std::optional<Tensor>& plan = {}) {
  check_arguments(op, q, k, v, scale, inputs);
  const Element& element = op.element;
  const ForwardTensors tensors{readable_by_tma(q, element), readable_by_tma(k, element), readable_by_tma(v, element),
                               out, lse, readable_inputs(op, inputs, call_sizes(q, k)), plan};
  check_outputs(op, tensors);
  launch(op, tensors, scale);
}

// Lists of KV tiles for calls of these sizes on `like`'s device, in one tensor of int32.
inline Tensor plan(const ForwardOp& op, const Tensor& like, const CallSizes& sizes,
                   const std::vector<Tensor>& inputs) {
  const int device = like.get_device_index();
  if (!like.is_cuda()) {
    fail(op.name, ": plan: must be made on a CUDA device");
  }
  check_inputs(op, sizes, inputs, device);
  if (sizes.batch <= 0 || sizes.heads <= 0 || sizes.seqlen_q <= 0 || sizes.seqlen_k < 0 || sizes.kv_heads <= 0) {
    return allocate(like, {0}, ScalarType::Int);  // such calls run no kernel
  }
  const torch::stable::accelerator::DeviceGuard guard(device);
  const ForwardKernel& kernel = op.kernel_for(sizes.seqlen_k);
  const std::vector<Tensor> readable = readable_inputs(op, inputs, sizes);
  ForwardArguments arguments;
  arguments.params = size_params(op, kernel, sizes);
  point_to_inputs(arguments, readable, like.const_data_ptr());
  return make_lists(op, kernel, arguments, like, current_stream(device));
}

}  // namespace fa3gen::host
