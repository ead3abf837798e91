// Host side of fa3gen::sink_window_e8b6dda6: its torch ops, and how its kernels are launched.
#include <torch/csrc/stable/library.h>

#include "fa3gen/host/forward.h"

extern "C" const unsigned char fa3gen_kernel[];  // kernel.cubin, embedded by cubin.S

namespace {
using fa3gen::host::Tensor;

fa3gen::host::DeviceKernel kernel(fa3gen_kernel, "sink_window_forward", 114800);
// A call takes the first kernel that takes so many keys.
const fa3gen::host::ForwardKernel kKernels[] = {
    {
        .device = kernel,
        .max_keys = fa3gen::host::kAnyKeys,
        .block_m = 128,
        .block_n = 128,
        .threads = 384,
        .smem_bytes = 114800,
        .cta_per_sm = 1,
        .persistent = true,
        .claims = true,
        .longest_first = true,
        .q = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .k = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .v = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .o = {.rows = 64, .cols = 64, .swizzle_bytes = 128},
    },
};

// What a call gives beside q, k, v.
const fa3gen::host::InputArgument kInputs[] = {
    {.name = "sinks", .dtype = "bf16", .scalar = fa3gen::host::ScalarType::BFloat16, .rank = 1, .axes = {fa3gen::host::kAxisHeads}},
};

const fa3gen::host::ForwardOp kOp{
    .name = "fa3gen::sink_window_e8b6dda6",
    .element = fa3gen::host::bf16,
    .head_dim_qk = 64,
    .head_dim_v = 64,
    .score_factor = 1.0,
    .score_is_product = true,
    .inputs = kInputs,
    .lists = nullptr,
    .kernels = kKernels,
};

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, double scale, Tensor sinks_) {
  return fa3gen::host::forward(kOp, q, k, v, scale, {sinks_});
}

void forward_out(Tensor q, Tensor k, Tensor v, double scale, Tensor sinks_, Tensor out, Tensor lse) {
  fa3gen::host::forward_out(kOp, q, k, v, scale, {sinks_}, out, lse);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fa3gen, m) {
  m.def("sink_window_e8b6dda6(Tensor q, Tensor k, Tensor v, float scale, Tensor sinks) -> (Tensor, Tensor)");
  m.def("sink_window_e8b6dda6_out(Tensor q, Tensor k, Tensor v, float scale, Tensor sinks, Tensor(a!) out, Tensor(b!) lse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fa3gen, CUDA, m) {
  m.impl("sink_window_e8b6dda6", TORCH_BOX(&forward));
  m.impl("sink_window_e8b6dda6_out", TORCH_BOX(&forward_out));
}
