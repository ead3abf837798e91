// Host side of fa3gen::alibi_066499da: its torch ops, and how its kernels are launched.
#include <torch/csrc/stable/library.h>

#include "fa3gen/host/forward.h"

extern "C" const unsigned char fa3gen_kernel[];  // kernel.cubin, embedded by cubin.S

namespace {
using fa3gen::host::Tensor;

fa3gen::host::DeviceKernel kernel(fa3gen_kernel, "alibi_forward", 229488);
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
    {.name = "slopes", .dtype = "fp32", .scalar = fa3gen::host::ScalarType::Float, .rank = 1, .axes = {fa3gen::host::kAxisHeads}},
};

const fa3gen::host::ForwardOp kOp{
    .name = "fa3gen::alibi_066499da",
    .element = fa3gen::host::bf16,
    .head_dim_qk = 128,
    .head_dim_v = 128,
    .score_factor = 1.0,
    .score_is_product = true,
    .inputs = kInputs,
    .lists = nullptr,
    .kernels = kKernels,
};

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, double scale, Tensor slopes_) {
  return fa3gen::host::forward(kOp, q, k, v, scale, {slopes_});
}

void forward_out(Tensor q, Tensor k, Tensor v, double scale, Tensor slopes_, Tensor out, Tensor lse) {
  fa3gen::host::forward_out(kOp, q, k, v, scale, {slopes_}, out, lse);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fa3gen, m) {
  m.def("alibi_066499da(Tensor q, Tensor k, Tensor v, float scale, Tensor slopes) -> (Tensor, Tensor)");
  m.def("alibi_066499da_out(Tensor q, Tensor k, Tensor v, float scale, Tensor slopes, Tensor(a!) out, Tensor(b!) lse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fa3gen, CUDA, m) {
  m.impl("alibi_066499da", TORCH_BOX(&forward));
  m.impl("alibi_066499da_out", TORCH_BOX(&forward_out));
}
