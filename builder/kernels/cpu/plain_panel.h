// The panel of a matrix of float32 or bfloat16.
#pragma once

#include "activations.h"
#include "tile.h"

namespace trierarch {

constexpr int64_t kRowChunk = 96;
constexpr int64_t kPanelRegisters = kColumns<std::max(kWide.panel_blocks, kTall.panel_blocks)>;

// A panel's result: (kRowChunk, kPanelRegisters).
using Totals = FloatRegister*;

template <int Rows, int Columns>
TRIERARCH_INLINE void store_totals(const FloatRegister (&tile)[Rows][Columns], Totals totals) {
  unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
    unrolled<Columns>([&](auto c) TRIERARCH_LAMBDA_INLINE { totals[m * kPanelRegisters + c] = tile[m][c]; });
  });
}

template <class T, int Rows, int Blocks, bool Prefetch, bool HasErrand>
__attribute__((noinline)) void plain_tile(const Operand<T>* left, int64_t left_stride, const uint32_t* right,
                                          int64_t block_stride, int64_t depth, Totals totals, const char* errand) {
  FloatRegister acc[Rows][kColumns<Blocks>] = {};
  multiply<T, Rows, kColumns<Blocks>, Prefetch, HasErrand>(left, left_stride, right, block_stride, depth, acc, errand);
  store_totals(acc, totals);
}

// `errand` may be null.
template <class T, TileShape Shape>
void plain_panel(const Activations<T>& x, const Packed& weight, int64_t block, int64_t num_blocks, Errand* errand,
                 Totals totals) {
  const auto* words = reinterpret_cast<const uint32_t*>(weight.blocks + block * weight.block_bytes());
  const int64_t depth = x.width / kPerWord<T>, stride = depth * kLanes;
  over_block_tiles<Shape.blocks>(num_blocks, [&](int64_t n, auto width) {
    over_row_tiles<Shape.rows>(x.num_rows, [&](int64_t row, auto height) {
      constexpr int kRows = decltype(height)::value, kBlocks = decltype(width)::value;
      constexpr decltype(&plain_tile<T, kRows, kBlocks, true, true>) kTiles[2][2] = {
          {plain_tile<T, kRows, kBlocks, false, false>, plain_tile<T, kRows, kBlocks, false, true>},
          {plain_tile<T, kRows, kBlocks, true, false>, plain_tile<T, kRows, kBlocks, true, true>}};
      const char* lines = errand == nullptr ? nullptr : errand->take(depth);
      kTiles[row == 0][lines != nullptr](x.rows + row * x.width, x.width, words + n * stride, stride, depth,
                                         totals + row * kPanelRegisters + n * kParts, lines);
    });
  });
}

}  // namespace trierarch
