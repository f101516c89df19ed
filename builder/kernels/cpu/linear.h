// Linear: rows of activations times a packed matrix, for one row or many.
//
// Few rows: the matrix is read once, from memory, and that is the whole cost. Many rows: work is cut both ways, and a
// panel of the matrix stays in the second-level cache for all rows of a chunk.
#pragma once

#include "adapted.h"
#include "panel.h"

namespace trierarch {

// Calls use(first unit, units, first row, end row) until `units` times `rows` are covered, at most `width` units at a time.
template <class Use>
TRIERARCH_INLINE void over_panels(Team& team, int64_t rows, int64_t units, int64_t width, Use&& use) {
  if (rows <= kRowChunk) {
    team.share(units, width, [&](int64_t begin, int64_t end) { use(begin, end - begin, 0, rows); });
    return;
  }
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk, panels = (units + width - 1) / width;
  // Nearly equal, of whole tiles but for the last.
  const int64_t height = ((rows + chunks - 1) / chunks + kTall.rows - 1) / kTall.rows * kTall.rows;
  team.share(panels * chunks, 1, [&](int64_t item, int64_t) {
    const int64_t first = item / chunks * width, row = item % chunks * height;
    use(first, std::min(width, units - first), row, std::min(row + height, rows));
  });
}

// Whether tiles are byte_panel.h's own.
template <class T>
bool has_byte_product(const Packed& weight) {
  return kHasByteProduct<T> && weight.is_quantised();
}

TRIERARCH_INLINE FloatRegister load_bias(const float* bias, int64_t column, int64_t count) {
  FloatRegister value = {};
  if (bias != nullptr) std::memcpy(&value, bias + column, std::min<int64_t>(count, kRegisterLanes) * sizeof(float));
  return value;
}

// Calls use(block, register of it, its first column, columns from there on) for the registers of `count` blocks that have
// columns.
template <class Use>
TRIERARCH_INLINE void over_registers(int64_t block, int64_t count, int64_t columns, Use&& use) {
  for (int64_t n = 0; n < count; ++n)
    for (int64_t p = 0; p < kParts; ++p) {
      const int64_t column = (block + n) * kLanes + p * kRegisterLanes;
      if (column < columns) use(n, p, column, columns - column);
    }
}

// Calls finish(first unit, units, first row, rows, totals) for every panel of x · weightᵀ, adapted; a unit is `unit_blocks`
// blocks.
template <class T, TileShape Shape, class Finish>
void over_products(Team& team, const Activations<T>& x, const Packed& weight, const Adapted<T>& adapted,
                   int64_t unit_blocks, Finish&& finish) {
  const int64_t width = Shape.panel_blocks / unit_blocks;
  over_panels(team, x.num_rows, blocks_of(weight.columns), width,
              [&](int64_t unit, int64_t count, int64_t first, int64_t end) {
                FloatRegister totals[kRowChunk * kPanelRegisters];
                const int64_t block = unit * unit_blocks, num_blocks = count * unit_blocks;
                panel<T, Shape>(x.from(first).first(end - first), weight, block, num_blocks, adapted.errand(team), totals);
                if (!adapted.is_empty()) adapted.add(block, num_blocks, first, end, totals);
                finish(unit, count, first, end - first, totals);
              });
}

// What a matrix and the adapters on it need to be worked out of x first.
template <class T>
void prepare(Team& team, const Activations<T>& x, const Packed& weight, const Adapted<T>& adapted) {
  if (weight.is_quantised()) prepare(team, x);
  if (!adapted.is_empty()) adapted.prepare(team, x.rows, x.width);
}

// y = x · weightᵀ + bias, adapted. y: (rows, columns) float32.
template <class T>
void linear(Team& team, const Activations<T>& x, const Packed& weight, const Adapted<T>& adapted, float* y) {
  prepare(team, x, weight, adapted);
  const auto finish = [&](int64_t block, int64_t count, int64_t first, int64_t rows, const FloatRegister* totals) {
    for (int64_t m = 0; m < rows; ++m)
      over_registers(block, count, weight.columns, [&](int64_t n, int64_t p, int64_t column, int64_t left) {
        const FloatRegister value = totals[m * kPanelRegisters + n * kParts + p] + load_bias(weight.bias, column, left);
        store_some(y + (first + m) * weight.columns + column, value, left);
      });
  };
  if (is_tall(x.num_rows) && !has_byte_product<T>(weight)) over_products<T, kTall>(team, x, weight, adapted, 1, finish);
  else over_products<T, kWide>(team, x, weight, adapted, 1, finish);
}

// y = activation(gate(x)) * up(x), both adapted. y: (rows, columns).
template <class T, class Activation>
void gated_linear(Team& team, const Activations<T>& x, const Packed& weight, const Adapted<T>& adapted, Operand<T>* y,
                  Activation activation) {
  prepare(team, x, weight, adapted);
  const float* up_bias = weight.bias == nullptr ? nullptr : weight.bias + weight.columns;
  const auto finish = [&](int64_t unit, int64_t count, int64_t first, int64_t rows, const FloatRegister* totals) {
    for (int64_t m = 0; m < rows; ++m)
      over_registers(unit, count, weight.columns, [&](int64_t n, int64_t p, int64_t column, int64_t left) {
        const FloatRegister* pair = totals + m * kPanelRegisters + 2 * n * kParts + p;
        const FloatRegister gate = pair[0] + load_bias(weight.bias, column, left);
        const FloatRegister up = pair[kParts] + load_bias(up_bias, column, left);
        store_some(y + (first + m) * weight.columns + column, activation(gate) * up, left);
      });
  };
  // Where a tall tile holds one pair of blocks only, it is worth it if it saves the second of two passes, from memory.
  const bool has_pairs = kTall.panel_blocks % 2 == 0 || x.num_rows <= kTall.rows;
  if (is_tall(x.num_rows) && has_pairs && !has_byte_product<T>(weight))
    over_products<T, kTall>(team, x, weight, adapted, 2, finish);
  else over_products<T, kWide>(team, x, weight, adapted, 2, finish);
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
