// Kernel parameters shared by the host and the device side. Plain C++: the host compiler reads it too.
#pragma once

#include <cstdint>

namespace fa3gen {

// A tensor (batch, seqlen, heads, head_dim) in global memory; strides in elements, 1 in head_dim.
struct GlobalTensor {
  void const* data;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t head_stride;
};

// A tensor that formulas look up, of up to 4 dimensions; a dimension of one element is broadcast.
struct InputTensor {
  void const* data;
  int64_t strides[4];  // elements
  int sizes[4];
};

// Lists of the KV tiles that query tiles visit, by batches and heads as far as the mask tells them apart. A list
// has room for all KV tiles: whole ones from its start on, masked ones from its end backwards.
struct TileLists {
  int* tiles;
  int* counts;       // of each list: whole tiles, masked tiles
  int batch_stride;  // lists between batches, and between heads; 0: they share theirs
  int head_stride;
  int room;          // tiles of a list
};

// Run-time values of a forward call. Tensors reach the kernel as TMA descriptors beside this; Q and K
// once more, for warps whose speculation on the row maxima has failed. Lists and input tensors follow it.
struct ForwardParams {
  float* lse;           // (batch, heads, seqlen_q) fp32, natural logarithm
  float scale_log2;     // what products or scores are multiplied by, base 2: the softmax scale and a constant factor
  int batch;
  int heads;            // query heads
  int heads_per_kv;     // query heads that share a KV head
  int seqlen_q;
  int seqlen_k;
  int m_blocks;         // query tiles of one head: ceil(seqlen_q / kBlockM)
  int work_tiles;       // m_blocks * heads * batch
  unsigned* next_work;  // claims of work tiles so far; null where they are not claimed
  int groups;           // of heads scheduled together, so that their K and V stay in L2
  int heads_per_group;  // in all groups but the last, which has what is left
  GlobalTensor q;
  GlobalTensor k;
  float scale;          // softmax scale
  float bias_factor;    // what the bias is multiplied by, to be added to products: a constant over the softmax scale
};

}  // namespace fa3gen
