// Host side of fa3gen::full_bias_df042127: its torch ops, and how its kernels are launched.
#include <torch/csrc/stable/library.h>

#include "fa3gen/host/forward.h"

extern "C" const unsigned char fa3gen_kernel[];  // kernel.cubin, embedded by cubin.S

namespace {
using fa3gen::host::Tensor;

fa3gen::host::DeviceKernel kernel(fa3gen_kernel, "full_bias_forward", 229488);
// A call takes the first kernel that takes so many keys.
const fa3gen::host::ForwardKernel kKernels[] = {
    {
        .device = kernel,
        .max_keys = fa3gen::host::kAnyKeys,
        .block_m = 128,
        .block_n = 128,
        .threads = 384,
        .smem_bytes = 229488,
        .cta_per_sm = 1,
        .persistent = true,
        .claims = false,
        .longest_first = false,
        .q = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .k = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .v = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .o = {.rows = 64, .cols = 64, .swizzle_bytes = 128},
        .bias = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
    },
};

// What a call gives beside q, k, v.
const fa3gen::host::InputArgument kInputs[] = {
    {.name = "bias", .dtype = "bf16", .scalar = fa3gen::host::ScalarType::BFloat16, .rank = 4, .axes = {fa3gen::host::kAxisBatch, fa3gen::host::kAxisHeads, fa3gen::host::kAxisRow, fa3gen::host::kAxisKey}},
};

const fa3gen::host::ForwardOp kOp{
    .name = "fa3gen::full_bias_df042127",
    .element = fa3gen::host::bf16,
    .head_dim_qk = 128,
    .head_dim_v = 128,
    .score_factor = 1.0,
    .score_is_product = true,
    .inputs = kInputs,
    .bias = 0,
    .bias_factor = 1.0,
    .lists = nullptr,
    .kernels = kKernels,
};

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, double scale, Tensor bias_) {
  return fa3gen::host::forward(kOp, q, k, v, scale, {bias_});
}

void forward_out(Tensor q, Tensor k, Tensor v, double scale, Tensor bias_, Tensor out, Tensor lse) {
  fa3gen::host::forward_out(kOp, q, k, v, scale, {bias_}, out, lse);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fa3gen, m) {
  m.def("full_bias_df042127(Tensor q, Tensor k, Tensor v, float scale, Tensor bias) -> (Tensor, Tensor)");
  m.def("full_bias_df042127_out(Tensor q, Tensor k, Tensor v, float scale, Tensor bias, Tensor(a!) out, Tensor(b!) lse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fa3gen, CUDA, m) {
  m.impl("full_bias_df042127", TORCH_BOX(&forward));
  m.impl("full_bias_df042127_out", TORCH_BOX(&forward_out));
}
