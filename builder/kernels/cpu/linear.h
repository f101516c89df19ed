// Linear: rows of activations times a packed matrix, for one row or many.
//
// Few rows: the matrix is read once, from memory, and that is the whole cost. Many rows: work is cut both ways, and a
// panel of the matrix stays in the second-level cache for all rows of a chunk.
#pragma once

#include "pack.h"
#include "tile.h"

namespace trierarch {

constexpr int64_t kRowChunk = 96;

template <class T, int Rows, int Blocks, class Use>
TRIERARCH_INLINE void panel(const T* x, int64_t first_row, int64_t end_row, const Packed<T>& weight, int64_t block,
                            Use&& use) {
  const uint32_t* words = weight.words + block * weight.block_stride();
  const int64_t stride = weight.depth * kPerWord<T>;
  over_row_tiles<Rows>(end_row - first_row, [&](int64_t row, auto height) {
    constexpr int kRows = decltype(height)::value;
    Floats acc[kRows][Blocks] = {};
    const T* left = x + (first_row + row) * stride;
    if (row == 0) multiply<T, kRows, Blocks, true>(left, stride, words, weight.block_stride(), weight.depth, acc);
    else multiply<T, kRows, Blocks>(left, stride, words, weight.block_stride(), weight.depth, acc);
    for (int m = 0; m < kRows; ++m) use(first_row + row + m, acc[m]);
  });
}

// Calls use(first unit, number of units as a constant, first row, end row) until `units` times `rows` are covered.
template <int Width, class Use>
TRIERARCH_INLINE void over_panels(Team& team, int64_t rows, int64_t units, Use&& use) {
  if (rows <= kRowChunk) {
    team.share(units, Width, [&](int64_t begin, int64_t end) {
      with_constant<Width>(static_cast<int>(end - begin), [&](auto count) { use(begin, count, 0, rows); });
    });
    return;
  }
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk, panels = (units + Width - 1) / Width;
  team.share(panels * chunks, 1, [&](int64_t item, int64_t) {
    const int64_t first = item / chunks * Width, chunk = item % chunks;
    const int64_t count = units - first < Width ? units - first : Width;
    with_constant<Width>(static_cast<int>(count), [&](auto constant) {
      use(first, constant, rows * chunk / chunks, rows * (chunk + 1) / chunks);
    });
  });
}

// Whether tiles of eight rows cover `rows` in fewer passes over the matrix than tiles of six.
constexpr bool is_tall(int64_t rows) {
  return (rows + kTallRows - 1) / kTallRows < (rows + kTileRows - 1) / kTileRows;
}

TRIERARCH_INLINE Floats load_bias(const float* bias, int64_t column, int64_t count) {
  Floats value = {};
  if (bias != nullptr) std::memcpy(&value, bias + column, (count < kLanes ? count : kLanes) * sizeof(float));
  return value;
}

template <class T, int Rows, int Width>
void linear_tiled(Team& team, const T* x, int64_t rows, const Packed<T>& weight, float* y) {
  over_panels<Width>(team, rows, blocks_of(weight.columns), [&](int64_t block, auto count, int64_t first, int64_t end) {
    constexpr int kCount = decltype(count)::value;
    panel<T, Rows, kCount>(x, first, end, weight, block, [&](int64_t row, const Floats(&acc)[kCount]) {
      for (int n = 0; n < kCount; ++n) {
        const int64_t column = (block + n) * kLanes, left = weight.columns - column;
        store_some(y + row * weight.columns + column, acc[n] + load_bias(weight.bias, column, left), left);
      }
    });
  });
}

// y = x · weightᵀ + bias. x: (rows, in_features) of T; y: (rows, columns) float32.
template <class T>
void linear(Team& team, const T* x, int64_t rows, const Packed<T>& weight, float* y) {
  if (is_tall(rows)) linear_tiled<T, kTallRows, kTallBlocks>(team, x, rows, weight, y);
  else linear_tiled<T, kTileRows, kTileBlocks>(team, x, rows, weight, y);
}

template <class T, int Rows, int Width, class Activation>
void gated_linear_tiled(Team& team, const T* x, int64_t rows, const Packed<T>& weight, T* y, Activation activation) {
  const float* up_bias = weight.bias == nullptr ? nullptr : weight.bias + weight.columns;
  over_panels<Width>(team, rows, blocks_of(weight.columns), [&](int64_t unit, auto count, int64_t first, int64_t end) {
    constexpr int kCount = decltype(count)::value;
    panel<T, Rows, 2 * kCount>(x, first, end, weight, 2 * unit, [&](int64_t row, const Floats(&acc)[2 * kCount]) {
      for (int n = 0; n < kCount; ++n) {
        const int64_t column = (unit + n) * kLanes, left = weight.columns - column;
        const Floats gate = acc[2 * n] + load_bias(weight.bias, column, left);
        const Floats up = acc[2 * n + 1] + load_bias(up_bias, column, left);
        store_some(y + row * weight.columns + column, activation(gate) * up, left);
      }
    });
  });
}

// y = activation(gate(x)) * up(x). y: (rows, columns) of T.
template <class T, class Activation>
void gated_linear(Team& team, const T* x, int64_t rows, const Packed<T>& weight, T* y, Activation activation) {
  // A tall tile holds one pair of blocks only: worth it where it saves the second of two passes, which is from memory.
  if (rows > kTileRows && rows <= kTallRows) gated_linear_tiled<T, kTallRows, 1>(team, x, rows, weight, y, activation);
  else gated_linear_tiled<T, kTileRows, kTileBlocks / 2>(team, x, rows, weight, y, activation);
}

}  // namespace trierarch
