// Scores and masks of a call, element by element, as the threads of a warp compute them: (b, h, row, k) fp32
// to the standard output. The sizes, Params, `params` and `products` come before.
#pragma once

#include <cstdio>

struct Tile {  // S of one thread
  static constexpr int kRows = 2, kColumns = kBlockN / 4;
  float values[kRows][kColumns];
  float& operator()(int r, int c) { return values[r][c]; }
};

// visit(work tile, a thread's first row, a KV tile's first key, S, which it changes).
template <class Visit>
void walk(Visit visit) {
  static float out[kBatch][kHeads][kBlockM][kKvTiles * kBlockN];
  for (int b = 0; b < kBatch; ++b) {
    for (int h = 0; h < kHeads; ++h) {
      for (int lane = 0; lane < 32; ++lane) {
        threadIdx.x = lane;
        for (int key = 0; key < kKvTiles * kBlockN; key += kBlockN) {
          Tile tile;
          auto const each = [&](auto function) {
            for (int r = 0; r < Tile::kRows; ++r)
              for (int c = 0; c < Tile::kColumns; ++c)
                function(r, c, lane / 4 + 8 * r, fa3gen::first_key(key) + fa3gen::column_offset(c));
          };
          each([&](int r, int c, int row, int k) { tile(r, c) = products[b][h][row][k]; });
          visit(fa3gen::WorkTile{0, h, h / kGroup, b}, lane / 4, key, tile);
          each([&](int r, int c, int row, int k) { out[b][h][row][k] = tile(r, c); });
        }
      }
    }
  }
  std::fwrite(out, sizeof out, 1, stdout);
}

template <class Formula>
void scores(float scale_log2) {
  params.scale_log2 = scale_log2;
  walk([](fa3gen::WorkTile const& work, int row, int key, Tile& tile) {
    fa3gen::modify_scores(tile, key, Formula(work, row, params));
  });
}

// A formula with a shift taken from its base, as speculation does.
template <class Formula>
struct Shifted : Formula {
  float const shift;

  Shifted(Formula const& formula, float shift) : Formula(formula), shift(shift) {}

  typename Formula::Base base(int r, int k) const {
    typename Formula::Base base = Formula::base(r, k);
    base.bias -= shift;
    return base;
  }
};

template <class Formula>
void shifted_scores(float shift) {
  walk([shift](fa3gen::WorkTile const& work, int row, int key, Tile& tile) {
    fa3gen::modify_scores(tile, key, Shifted<Formula>(Formula(work, row, params), shift));
  });
}

// The formula where its tables end, in whole tiles that are so far from the rows; NaN in others.
template <class Formula>
void far_scores() {
  walk([](fa3gen::WorkTile const& work, int row, int key, Tile& tile) {
    Formula const formula(work, row, params);
    bool const far = formula.template far<kBlockN>(
        key, [&](auto const& left) { fa3gen::modify_scores(tile, key, left); });
    for (int i = 0; !far && i < Tile::kRows * Tile::kColumns; ++i) {
      tile(i / Tile::kColumns, i % Tile::kColumns) = NAN;
    }
  });
}

// factor * formula(product) - shift of a soft cap by its polynomial; 0 beyond its end.
template <class Formula>
void capped_scores(float factor, float shift) {
  walk([factor, shift](fa3gen::WorkTile const& work, int row, int, Tile& tile) {
    float const slope = Formula(work, row, params).slope();
    fa3gen::ShortTanh const capped(slope, factor);
    for (int r = 0; r < Tile::kRows; ++r) {
      for (int c = 0; c < Tile::kColumns; ++c) {
        bool const within = std::fabs(slope * tile(r, c)) <= fa3gen::ShortTanh::kEnd;
        tile(r, c) = within ? capped(tile(r, c), shift) : 0.f;
      }
    }
  });
}

// Of a mask that repeats along rows, inside the keys that keep(row, params) gives.
template <class Mask, bool kBegins, int kBlocks, class Keep>
void pattern(Keep keep) {
  walk([keep](fa3gen::WorkTile const& work, int row, int key, Tile& tile) {
    auto const kept = [keep](int r) { return keep(r, params); };
    fa3gen::mask_pattern<kBegins, kBlocks>(tile, row, key, kept, Mask(work, row, params));
  });
}

template <class Mask>
void masked() {
  walk([](fa3gen::WorkTile const& work, int row, int key, Tile& tile) {
    fa3gen::mask_scores(tile, key, Mask(work, row, params));
  });
}

// A mask that knows the interval of keys that a row keeps.
template <class Mask>
void kept_rows() {
  walk([](fa3gen::WorkTile const& work, int row, int key, Tile& tile) {
    Mask const mask(work, row, params);
    for (int r = 0; r < Tile::kRows; ++r) {
      fa3gen::RowKeys const keys = mask(row + 8 * r);
      for (int c = 0; c < Tile::kColumns; ++c) {
        int const k = fa3gen::first_key(key) + fa3gen::column_offset(c);
        tile(r, c) = keys.begin <= k && k < keys.end ? 0.f : -INFINITY;
      }
    }
  });
}
