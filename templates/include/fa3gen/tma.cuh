// Tensor Memory Accelerator: tiles of (batch, seqlen, heads, head_dim) tensors.
//
// A tensor map covers (head_dim, seqlen, heads, batch) with a box of one 128-byte column chunk by
// some rows. Rows and columns outside the tensor read as zero and are not written.
#pragma once

#include <cstdint>
#include <cuda.h>

#include <cute/arch/util.hpp>

namespace fa3gen {

// L2 eviction priorities, as the encodings that createpolicy yields.
constexpr uint64_t kEvictFirst = 0x12F0000000000000;
constexpr uint64_t kEvictLast = 0x14F0000000000000;

__device__ __forceinline__ void prefetch_map(CUtensorMap const& map) {
  asm volatile("prefetch.tensormap [%0];" :: "l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}

// Load kChunks column chunks of kRows rows from (row, head, batch) and `column` on; bytes complete on the barrier.
template <int kChunks, int kRows, int kChunkColumns, class Element>
__device__ __forceinline__ void tma_load(CUtensorMap const& map, uint64_t& barrier, Element* tile,
                                         int row, int head, int batch, uint64_t eviction, int column = 0) {
  uint32_t const arrival = cute::cast_smem_ptr_to_uint(&barrier);
#pragma unroll 1
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    uint32_t const target = cute::cast_smem_ptr_to_uint(tile + chunk * kRows * kChunkColumns);
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
        :: "r"(target), "l"(reinterpret_cast<uint64_t>(&map)), "r"(arrival),
           "r"(column + chunk * kChunkColumns), "r"(row), "r"(head), "r"(batch), "l"(eviction)
        : "memory");
  }
}

// Store kChunks column chunks, each kPitchRows rows apart, to (row, head, batch).
template <int kChunks, int kPitchRows, int kChunkColumns, class Element>
__device__ __forceinline__ void tma_store(CUtensorMap const& map, Element const* tile, int row,
                                          int head, int batch) {
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    uint32_t const source = cute::cast_smem_ptr_to_uint(tile + chunk * kPitchRows * kChunkColumns);
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                 :: "l"(reinterpret_cast<uint64_t>(&map)), "r"(source),
                    "r"(chunk * kChunkColumns), "r"(row), "r"(head), "r"(batch)
                 : "memory");
  }
}

__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Wait until at most kPending store groups of this thread still read shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(kPending) : "memory");
}

}  // namespace fa3gen
