// Stand-in for an attention kernel, with its interface and none of its work: out = q, and
// lse = scale * log2(e) + k[b, 0, hk, 0] + v[b, 0, hk, 0], all of it moved by TMA.
#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "fa3gen/params.h"

namespace {

constexpr int kBlockM = 128, kBlockN = 128, kHeadDim = 128, kBoxCols = 64, kRowsO = 64;
constexpr int kBoxesD = kHeadDim / kBoxCols;
constexpr int kBytesQ = kBlockM * kHeadDim * 2, kBytesKV = kBlockN * kBoxCols * 2;

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ void load(const CUtensorMap& map, void* to, uint64_t* barrier, int col, int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
      ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(barrier)), "r"(col), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

__device__ void store(const CUtensorMap& map, const void* from, int col, int row, int head, int batch) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(col), "r"(row), "r"(head), "r"(batch)
               : "memory");
}

__device__ void wait(uint64_t* barrier, int phase) {
  asm volatile(
      "{\n .reg .pred done;\n again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      " @!done bra again;\n}\n" ::"r"(shared_address(barrier)), "r"(phase)
      : "memory");
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 1)
    standin_kernel(const __grid_constant__ CUtensorMap tma_q, const __grid_constant__ CUtensorMap tma_k,
                   const __grid_constant__ CUtensorMap tma_v, const __grid_constant__ CUtensorMap tma_o,
                   const __grid_constant__ fa3gen::ForwardParams params) {
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* sQ = shared;
  unsigned char* sK = sQ + kBytesQ;
  unsigned char* sV = sK + kBytesKV;
  auto* barrier = reinterpret_cast<uint64_t*>(sV + kBytesKV);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();

  int phase = 0;
  for (int work = blockIdx.x; work < params.work_tiles; work += gridDim.x, phase ^= 1) {
    const int row = work % params.m_blocks * kBlockM;
    const int head = work / params.m_blocks % params.heads;
    const int batch = work / params.m_blocks / params.heads;
    const int head_kv = head / params.heads_per_kv;
    if (threadIdx.x == 0) {
      const int bytes = kBytesQ + (params.seqlen_k > 0 ? 2 * kBytesKV : 0);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                   : "memory");
      for (int box = 0; box < kBoxesD; ++box) {
        load(tma_q, sQ + box * kBlockM * kBoxCols * 2, barrier, box * kBoxCols, row, head, batch);
      }
      if (params.seqlen_k > 0) {
        load(tma_k, sK, barrier, 0, 0, head_kv, batch);
        load(tma_v, sV, barrier, 0, 0, head_kv, batch);
      }
    }
    wait(barrier, phase);
    float lse = params.scale_log2;
    if (params.seqlen_k > 0) {
      lse += __bfloat162float(*reinterpret_cast<__nv_bfloat16*>(sK));
      lse += __bfloat162float(*reinterpret_cast<__nv_bfloat16*>(sV));
    }
    const int64_t lse_row = (int64_t{batch} * params.heads + head) * params.seqlen_q + row + threadIdx.x;
    if (row + static_cast<int>(threadIdx.x) < params.seqlen_q) {
      params.lse[lse_row] = lse;
    }
    if (threadIdx.x == 0) {
      for (int box = 0; box < kBoxesD * (kBlockM / kRowsO); ++box) {
        const int half = box % (kBlockM / kRowsO), col = box / (kBlockM / kRowsO);
        store(tma_o, sQ + (col * kBlockM + half * kRowsO) * kBoxCols * 2, col * kBoxCols, row + half * kRowsO, head,
              batch);
      }
      asm volatile("cp.async.bulk.commit_group;\n cp.async.bulk.wait_group 0;" ::: "memory");
    }
    __syncthreads();
  }
}
