// Host side of fa3gen::mla_prefill_d192_128_bf16_89f3ee1e: its torch ops, and how its kernel is launched.
#include <torch/csrc/stable/library.h>

#include "fa3gen/host/forward.h"

extern "C" const unsigned char fa3gen_cubin[];  // kernel.cubin, embedded by cubin.S

namespace {
using fa3gen::host::Tensor;

constexpr fa3gen::host::ForwardKernel kKernel{
    .op = "fa3gen::mla_prefill_d192_128_bf16_89f3ee1e",
    .element = fa3gen::host::bf16,
    .head_dim_qk = 192,
    .head_dim_v = 128,
    .block_m = 128,
    .threads = 384,
    .smem_bytes = 213104,
    .cta_per_sm = 1,
    .persistent = true,
    .claims = true,
    .longest_first = true,
    .q = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
    .k = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
    .v = {.rows = 128, .cols = 64, .swizzle_bytes = 128},
    .o = {.rows = 64, .cols = 64, .swizzle_bytes = 128},
};

fa3gen::host::DeviceKernel device_kernel(fa3gen_cubin, "mla_prefill_d192_128_bf16_forward", kKernel.smem_bytes);

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, double scale) {
  return fa3gen::host::forward(kKernel, device_kernel, q, k, v, scale);
}

void forward_out(Tensor q, Tensor k, Tensor v, double scale, Tensor out, Tensor lse) {
  fa3gen::host::forward_out(kKernel, device_kernel, q, k, v, scale, out, lse);
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fa3gen, m) {
  m.def("mla_prefill_d192_128_bf16_89f3ee1e(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)");
  m.def("mla_prefill_d192_128_bf16_89f3ee1e_out(Tensor q, Tensor k, Tensor v, float scale, Tensor(a!) out, Tensor(b!) lse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fa3gen, CUDA, m) {
  m.impl("mla_prefill_d192_128_bf16_89f3ee1e", TORCH_BOX(&forward));
  m.impl("mla_prefill_d192_128_bf16_89f3ee1e_out", TORCH_BOX(&forward_out));
}
