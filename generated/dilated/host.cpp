// Host side of fa3gen::dilated_49db52a7: its torch ops, and how its kernels are launched.
#include <torch/csrc/stable/library.h>

#include "fa3gen/host/forward.h"

extern "C" const unsigned char fa3gen_kernel[];  // kernel.cubin, embedded by cubin.S
extern "C" const unsigned char fa3gen_lists[];

namespace {
using fa3gen::host::Tensor;

fa3gen::host::DeviceKernel kernel(fa3gen_kernel, "dilated_forward", 229488);
// Lists KV tiles for the others.
fa3gen::host::DeviceKernel lists(fa3gen_lists, "dilated_lists", 0);
const fa3gen::host::ListsKernel kLists{.device = lists, .by_batch = false, .by_head = false};

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

const fa3gen::host::ForwardOp kOp{
    .name = "fa3gen::dilated_49db52a7",
    .element = fa3gen::host::bf16,
    .head_dim_qk = 128,
    .head_dim_v = 128,
    .score_factor = 1.0,
    .score_is_product = true,
    .inputs = {},
    .lists = &kLists,
    .kernels = kKernels,
};

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, double scale, std::optional<Tensor> plan) {
  return fa3gen::host::forward(kOp, q, k, v, scale, {}, plan);
}

void forward_out(Tensor q, Tensor k, Tensor v, double scale, std::optional<Tensor> plan, Tensor out, Tensor lse) {
  fa3gen::host::forward_out(kOp, q, k, v, scale, {}, out, lse, plan);
}

Tensor plan(Tensor like, int64_t batch, int64_t heads, int64_t heads_k, int64_t seqlen_q, int64_t seqlen_k) {
  return fa3gen::host::plan(kOp, like, {batch, heads, heads_k, seqlen_q, seqlen_k}, {});
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fa3gen, m) {
  m.def("dilated_49db52a7(Tensor q, Tensor k, Tensor v, float scale, Tensor? plan) -> (Tensor, Tensor)");
  m.def("dilated_49db52a7_out(Tensor q, Tensor k, Tensor v, float scale, Tensor? plan, Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("dilated_49db52a7_plan(Tensor like, int batch, int heads, int heads_k, int seqlen_q, int seqlen_k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fa3gen, CUDA, m) {
  m.impl("dilated_49db52a7", TORCH_BOX(&forward));
  m.impl("dilated_49db52a7_out", TORCH_BOX(&forward_out));
  m.impl("dilated_49db52a7_plan", TORCH_BOX(&plan));
}
