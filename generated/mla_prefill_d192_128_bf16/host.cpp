// Host side of fa3gen::mla_prefill_d192_128_bf16_a477cb8d: its torch ops, and how its kernels are launched.
#include <torch/csrc/stable/library.h>

#include "fa3gen/host/forward.h"

extern "C" const unsigned char fa3gen_kernel[];  // kernel.cubin, embedded by cubin.S

namespace {
using fa3gen::host::Tensor;

fa3gen::host::DeviceKernel kernel(fa3gen_kernel, "mla_prefill_d192_128_bf16_forward", 213112);
// A call takes the first kernel that takes so many keys.
const fa3gen::host::ForwardKernel kKernels[] = {
    {
        .device = kernel,
        .max_keys = fa3gen::host::kAnyKeys,
        .block_m = 128,
        .block_n = 128,
        .threads = 384,
        .smem_bytes = 213112,
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

const fa3gen::host::ForwardOp kOp{
    .name = "fa3gen::mla_prefill_d192_128_bf16_a477cb8d",
    .element = fa3gen::host::bf16,
    .head_dim_qk = 192,
    .head_dim_v = 128,
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
  m.def("mla_prefill_d192_128_bf16_a477cb8d(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)");
  m.def("mla_prefill_d192_128_bf16_a477cb8d_out(Tensor q, Tensor k, Tensor v, float scale, Tensor(a!) out, Tensor(b!) lse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fa3gen, CUDA, m) {
  m.impl("mla_prefill_d192_128_bf16_a477cb8d", TORCH_BOX(&forward));
  m.impl("mla_prefill_d192_128_bf16_a477cb8d_out", TORCH_BOX(&forward_out));
}
