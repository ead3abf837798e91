// Barriers of a CTA: mbarriers, named barriers, and ring positions.
#pragma once

#include <cstdint>

#include <cute/arch/util.hpp>

namespace fa3gen {

// A position in a ring of kStages buffers: the stage, and the parity of its current fill.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if constexpr (kStages == 1) {
      parity ^= 1;
    } else {
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
};

// One mbarrier a stage, each completed by so many arrivals.
template <int kStages>
__device__ __forceinline__ void init_barriers(uint64_t (&barriers)[kStages], int arrivals) {
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :: "r"(cute::cast_smem_ptr_to_uint(&barriers[stage])), "r"(arrivals));
  }
}

// Initialised mbarriers become visible to the async proxy (TMA).
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Wait until the phase of the given parity is complete.
__device__ __forceinline__ void wait_barrier(uint64_t& barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "try_again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra try_again;\n"
      "}\n"
      :: "r"(cute::cast_smem_ptr_to_uint(&barrier)), "r"(parity) : "memory");
}

// Arrive, and expect so many bytes by TMA before the phase completes.
__device__ __forceinline__ void expect_bytes(uint64_t& barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(cute::cast_smem_ptr_to_uint(&barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive_barrier(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :: "r"(cute::cast_smem_ptr_to_uint(&barrier)) : "memory");
}

// One arrival of each warp, once all its lanes have come here.
__device__ __forceinline__ void arrive_each_warp(uint64_t& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    arrive_barrier(barrier);
  }
}

// A word that one lane of each warp reads, the lane that arrives for it.
// NOTES: a predicated load, no branch: behind a branch ptxas takes the word, and with it every loop that
// depends on it, as divergent, at the cost of 15 % more instructions.
__device__ __forceinline__ int read_each_warp(int const& word) {
  int value = 0;
  asm volatile(
      "{\n"
      ".reg .pred first;\n"
      "setp.eq.u32 first, %2, 0;\n"
      "@first ld.shared.s32 %0, [%1];\n"
      "}\n"
      : "+r"(value) : "r"(cute::cast_smem_ptr_to_uint(&word)), "r"(threadIdx.x % 32) : "memory");
  return __shfl_sync(0xffffffff, value, 0);
}

// Named barriers: whoever syncs waits for all threads, whoever arrives does not.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// Generic shared-memory accesses so far come before async-proxy accesses (TMA, wgmma) after.
__device__ __forceinline__ void proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace fa3gen
