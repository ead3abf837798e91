// Host side of fa3gen::causal_d64_bf16_574d73e9: its torch ops, and how its kernels are launched.
#include <torch/csrc/stable/library.h>

#include "fa3gen/host/forward.h"

extern "C" const unsigned char fa3gen_kernel_to_2880[];  // kernel_to_2880.cubin, embedded by cubin.S
extern "C" const unsigned char fa3gen_kernel[];  // kernel.cubin, embedded by cubin.S

namespace {
using fa3gen::host::Tensor;

fa3gen::host::DeviceKernel kernel_to_2880(fa3gen_kernel_to_2880, "causal_d64_bf16_forward_to_2880", 82032);
fa3gen::host::DeviceKernel kernel(fa3gen_kernel, "causal_d64_bf16_forward", 139376);
// A call takes the first kernel that takes so many keys.
const fa3gen::host::ForwardKernel kKernels[] = {
    {
        .device = kernel_to_2880,
        .max_keys = 2880,
        .block_m = 128,
        .block_n = 64,
        .threads = 384,
        .smem_bytes = 82032,
        .cta_per_sm = 2,
        .persistent = true,
        .claims = true,
        .longest_first = true,
        .q = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .k = {.rows = 64, .cols = 64, .swizzle_bytes = 128},
        .v = {.rows = 64, .cols = 64, .swizzle_bytes = 128},
        .o = {.rows = 64, .cols = 64, .swizzle_bytes = 128},
    },
    {
        .device = kernel,
        .max_keys = fa3gen::host::kAnyKeys,
        .block_m = 192,
        .block_n = 128,
        .threads = 512,
        .smem_bytes = 139376,
        .cta_per_sm = 1,
        .persistent = true,
        .claims = true,
        .longest_first = true,
        .q = {.rows = 192, .cols = 64, .swizzle_bytes = 128},
        .k = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .v = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
        .o = {.rows = 64, .cols = 64, .swizzle_bytes = 128},
    },
};

const fa3gen::host::ForwardOp kOp{
    .name = "fa3gen::causal_d64_bf16_574d73e9",
    .element = fa3gen::host::bf16,
    .head_dim_qk = 64,
    .head_dim_v = 64,
    .score_factor = 1.0,
    .score_is_product = true,
    .inputs = {},
    .lists = nullptr,
    .kernels = kKernels,
};

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, double scale) {
  return fa3gen::host::forward(kOp, q, k, v, scale, {});
}

void forward_out(Tensor q, Tensor k, Tensor v, double scale, Tensor out, Tensor lse) {
  fa3gen::host::forward_out(kOp, q, k, v, scale, {}, out, lse);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fa3gen, m) {
  m.def("causal_d64_bf16_574d73e9(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)");
  m.def("causal_d64_bf16_574d73e9_out(Tensor q, Tensor k, Tensor v, float scale, Tensor(a!) out, Tensor(b!) lse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fa3gen, CUDA, m) {
  m.impl("causal_d64_bf16_574d73e9", TORCH_BOX(&forward));
  m.impl("causal_d64_bf16_574d73e9_out", TORCH_BOX(&forward_out));
}
