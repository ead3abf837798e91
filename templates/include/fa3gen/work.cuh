// Work tiles of a CTA, and the KV tiles that each visits.
#pragma once

#include <fa3gen/params.h>

namespace fa3gen {

// The kernel that lists KV tiles lets the next one start early, which waits for its lists (PTX ISA, griddepcontrol).
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_for_lists() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// kBlockM query rows of one head.
struct WorkTile {
  int m_block;
  int head;
  int kv_head;
  int batch;
};

// Integer division and remainder that round down, as in Python. The divisor is a constant.
__device__ __forceinline__ int floor_div(int a, int b) {
  if (b > 0 && (b & (b - 1)) == 0) {
    return a >> (31 - __clz(b));
  }
  int const quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

__device__ __forceinline__ int floor_mod(int a, int b) { return a - floor_div(a, b) * b; }

// Work tiles are numbered in groups of heads whose K and V fit in L2 together; inside a group the
// last query tiles, which see the most keys under a causal mask, come first.
__device__ __forceinline__ WorkTile work_tile(int work, ForwardParams const& params) {
  int const per_group = params.heads_per_group * params.m_blocks;
  int const group = min(work / per_group, params.groups - 1);
  int const within = work - group * per_group;
  int const first = group * params.heads_per_group;
  int const last = group == params.groups - 1;
  int const heads = last ? params.heads * params.batch - first : params.heads_per_group;
  int const rank = within / heads;
  int const flat = first + within - rank * heads;
  int const batch = flat / params.heads;
  int const head = flat - batch * params.heads;
  return {params.m_blocks - 1 - rank, head, head / params.heads_per_kv, batch};
}

// Claims of work tiles by the CTAs of a persistent grid: the first is a CTA's own index, the others
// come from a counter. Each valid work tile makes one claim, so work_tiles claims are made in all and
// atomicInc, which wraps after as many, leaves the counter at zero for the next launch.
struct WorkClaims {
  int index = blockIdx.x;  // claimed last

  __device__ __forceinline__ void claim_ahead(ForwardParams const& params) {
    index = gridDim.x + atomicInc(params.next_work, params.work_tiles - 1);
  }
};

// KV tiles begin .. end - 1 are visited, from the last down. The softmax of the loop's turns in
// [full_begin, full_end) needs no mask. begin <= full_begin <= full_end <= end.
struct KvRange {
  int begin;
  int full_begin;
  int full_end;
  int end;
};

// Key bounds to tiles: keys in [some_begin, some_end) are kept by some row of the query tile, keys in
// [every_begin, every_end) by every row. Above fewer than kPeeled tiles stand others that no row keeps;
// with the softmax of a tile kLag turns late, the turns that need no mask are as late. The last kFollowed
// tiles, which are visited first, are taken for masked. With kAlways a query tile that keeps no key visits
// the tile past the last one.
template <int kBlockN, int kPeeled, int kLag, int kFollowed, bool kAlways>
__device__ __forceinline__ KvRange kv_tiles(int some_begin, int every_begin, int every_end,
                                            int some_end, int seqlen_k) {
  auto const clamp = [](int x, int low, int high) { return max(low, min(x, high)); };
  int const end = (clamp(some_end, 0, seqlen_k) + kBlockN - 1) / kBlockN;
  int const begin = min(clamp(some_begin, 0, seqlen_k) / kBlockN, end);
  int const whole_end = clamp(every_end, 0, seqlen_k) / kBlockN;
  int const full_end = clamp(kFollowed ? min(whole_end, end - kFollowed) : whole_end, begin, end);
  int const full_begin = clamp((max(every_begin, 0) + kBlockN - 1) / kBlockN, begin, full_end);
  if (kAlways && begin == end) {
    int const beyond = (max(seqlen_k, 1) + kBlockN - 1) / kBlockN;
    return {beyond, beyond, beyond, beyond + max(kPeeled, 1)};
  }
  auto const late = [&](int tile) { return max(tile - kLag, begin); };
  int const least = begin < end ? begin + kPeeled : end;
  return {begin, late(full_begin), late(full_end), max(end, least)};
}

// The same of places in a list of KV tiles.
struct KvList : KvRange {
  int const* tiles;
  int last;    // of the list's room
  int whole;
  int masked;
  int beyond;  // a tile past the last key

  __device__ __forceinline__ int tile(int place) const {
    if (place < whole) {
      return tiles[place];
    }
    return place < whole + masked ? tiles[last - (place - whole)] : beyond;
  }
};

// The list of a work tile: masked tiles are visited first, then whole ones. For kPeeled and the others see
// kv_tiles.
template <int kBlockN, int kPeeled, int kLag, int kFollowed, bool kAlways>
__device__ __forceinline__ KvList listed_tiles(WorkTile const& tile, TileLists const& lists, int m_blocks,
                                               int seqlen_k) {
  int const list =
      (tile.batch * lists.batch_stride + tile.head * lists.head_stride) * m_blocks + tile.m_block;
  int const whole = lists.counts[2 * list], masked = lists.counts[2 * list + 1];
  int const count = whole + masked;
  int const end = count > 0 ? max(count, kPeeled) : kAlways ? max(kPeeled, 1) : 0;
  int const full_end = max(min(kFollowed ? min(whole, end - kFollowed) : whole, end) - kLag, 0);
  KvList kv;
  kv.begin = kv.full_begin = 0;
  kv.full_end = full_end;
  kv.end = end;
  kv.tiles = lists.tiles + static_cast<int64_t>(list) * lists.room;
  kv.last = lists.room - 1;
  kv.whole = whole;
  kv.masked = masked;
  kv.beyond = (max(seqlen_k, 1) + kBlockN - 1) / kBlockN;
  return kv;
}

}  // namespace fa3gen
