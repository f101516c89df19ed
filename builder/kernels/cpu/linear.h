// Linear: rows of activations times a packed matrix, for one row or many.
//
// Few rows: the matrix is read once, from memory, and that is the whole cost. Many rows: work is cut both ways, and a
// panel of the matrix stays in the second-level cache for all rows of a chunk.
#pragma once

#include "panel.h"

namespace trierarch {

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

// Calls finish(first unit, units, first row, rows, totals) for every panel of x · weightᵀ; a unit is `UnitBlocks` blocks.
template <class T, int Rows, int Units, int UnitBlocks, class Finish>
void over_products(Team& team, const Activations<T>& x, const Packed& weight, Finish&& finish) {
  over_panels<Units>(team, x.num_rows, blocks_of(weight.columns), [&](int64_t unit, auto count, int64_t first, int64_t end) {
    constexpr int kBlocks = decltype(count)::value * UnitBlocks;
    Floats totals[kRowChunk * kTileBlocks];
    panel<T, Rows, kBlocks>(x.from(first).first(end - first), weight, unit * UnitBlocks, totals);
    finish(unit, kBlocks / UnitBlocks, first, end - first, totals);
  });
}

// y = x · weightᵀ + bias. y: (rows, columns) float32.
template <class T>
void linear(Team& team, const Activations<T>& x, const Packed& weight, float* y) {
  if (weight.is_quantised()) prepare(team, x);
  const auto finish = [&](int64_t block, int64_t count, int64_t first, int64_t rows, const Floats* totals) {
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t n = 0; n < count; ++n) {
        const int64_t column = (block + n) * kLanes, left = weight.columns - column;
        const Floats value = totals[m * kTileBlocks + n] + load_bias(weight.bias, column, left);
        store_some(y + (first + m) * weight.columns + column, value, left);
      }
  };
  if (is_tall(x.num_rows) && !weight.is_quantised()) over_products<T, kTallRows, kTallBlocks, 1>(team, x, weight, finish);
  else over_products<T, kTileRows, kTileBlocks, 1>(team, x, weight, finish);
}

// y = activation(gate(x)) * up(x). y: (rows, columns) of T.
template <class T, class Activation>
void gated_linear(Team& team, const Activations<T>& x, const Packed& weight, T* y, Activation activation) {
  if (weight.is_quantised()) prepare(team, x);
  const float* up_bias = weight.bias == nullptr ? nullptr : weight.bias + weight.columns;
  const auto finish = [&](int64_t unit, int64_t count, int64_t first, int64_t rows, const Floats* totals) {
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t n = 0; n < count; ++n) {
        const int64_t column = (unit + n) * kLanes, left = weight.columns - column;
        const Floats gate = totals[m * kTileBlocks + 2 * n] + load_bias(weight.bias, column, left);
        const Floats up = totals[m * kTileBlocks + 2 * n + 1] + load_bias(up_bias, column, left);
        store_some(y + (first + m) * weight.columns + column, activation(gate) * up, left);
      }
  };
  // A tall tile holds one pair of blocks only: worth it where it saves the second of two passes, which is from memory.
  const bool is_one_pass = x.num_rows > kTileRows && x.num_rows <= kTallRows;
  if (is_one_pass && !weight.is_quantised()) over_products<T, kTallRows, 1, 2>(team, x, weight, finish);
  else over_products<T, kTileRows, kTileBlocks / 2, 2>(team, x, weight, finish);
}

// Row `column` of a packed matrix, times `factor`.
template <class T>
void copy_row(const Packed& weight, int64_t column, float factor, float* target) {
  if (weight.format == Format::kInt8) return copy_quantised_row<Int8>(weight, column, factor, target);
  if (weight.format == Format::kInt4) return copy_quantised_row<Int4>(weight, column, factor, target);
  const T* block = reinterpret_cast<const T*>(weight.blocks + column / kLanes * weight.block_bytes());
  for (int64_t i = 0; i < weight.in_features; ++i)
    target[i] = to_float(block[(i / kPerWord<T> * kLanes + column % kLanes) * kPerWord<T> + i % kPerWord<T>]) * factor;
}

}  // namespace trierarch
