// Panel: a few blocks of a packed matrix times some rows of activations, whatever the matrix's format.
//
// Each output element is summed in one order whatever the number of rows: over the whole depth, or, of a quantised
// matrix, over each group and then group by group.
#pragma once

#include "codes.h"
#include "tile.h"

namespace trierarch {

constexpr int64_t kRowChunk = 96;

// Rows of activations, and what quantised matrices with offsets need of them.
template <class T>
struct Activations {
  const T* rows;  // (num_rows, in_features)
  float* sums;    // (num_rows, in_features / kGroup): room for each group's sum
  int64_t num_rows;
};

// A panel's result: row m, block n at [m * kTileBlocks + n].
using Totals = Floats*;

template <class T, int Rows, int Blocks>
void plain_panel(const T* x, int64_t rows, const Packed& weight, int64_t block, Totals totals) {
  const auto* words = reinterpret_cast<const uint32_t*>(weight.codes + block * weight.block_bytes());
  const int64_t depth = weight.in_features / kPerWord<T>, stride = depth * kLanes;
  over_row_tiles<Rows>(rows, [&](int64_t row, auto height) {
    constexpr int kRows = decltype(height)::value;
    Floats acc[kRows][Blocks] = {};
    const T* left = x + row * weight.in_features;
    if (row == 0) multiply<T, kRows, Blocks, true>(left, weight.in_features, words, stride, depth, acc);
    else multiply<T, kRows, Blocks>(left, weight.in_features, words, stride, depth, acc);
    for (int m = 0; m < kRows; ++m)
      for (int n = 0; n < Blocks; ++n) totals[(row + m) * kTileBlocks + n] = acc[m][n];
  });
}

// One group of one block, to be added to what came before.
template <class Codes>
TRIERARCH_INLINE Floats rescaled(Floats total, Floats part, Floats scale, Floats offset, float sum) {
  total += part * scale;
  if constexpr (Codes::kHasOffsets) total += offset * sum;
  return total;
}

// Tables of one group, of some neighbouring blocks.
template <class Codes, int Blocks>
struct GroupTables {
  Floats scale[Blocks], offset[Blocks];

  TRIERARCH_INLINE GroupTables(const Packed& weight, int64_t block, int64_t group) {
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) {
      const int64_t place = ((block + n) * weight.num_groups() + group) * kLanes;
      scale[n] = load_halves(weight.scales + place);
      offset[n] = Codes::kHasOffsets ? load_halves(weight.offsets + place) : Floats{};
    }
  }
};

// Few rows: codes are unpacked in registers as they come from memory.
template <class T, class Codes, int Rows, int Blocks>
void streamed_panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
  constexpr int64_t kAhead = 4 * kGroup / kSpan * Codes::kSpanBytes;
  const uint8_t* codes = weight.codes + block * weight.block_bytes();
  Floats acc[Rows][Blocks] = {};
  for (int64_t group = 0; group < weight.num_groups(); ++group) {
    Floats part[Rows][Blocks] = {};
    const GroupTables<Codes, Blocks> tables(weight, block, group);
    for (int64_t span = group * kGroup / kSpan; span < (group + 1) * kGroup / kSpan; ++span) {
#pragma GCC unroll 4
      for (int n = 0; n < Blocks; ++n) {
        const uint8_t* place = codes + n * weight.block_bytes() + span * Codes::kSpanBytes;
        for (int64_t line = 0; line < Codes::kSpanBytes; line += 64) __builtin_prefetch(place + kAhead + line);
        Words words[kSpanWords<T>];
        Codes::template unpack<T>(place, words);
#pragma GCC unroll 8
        for (int i = 0; i < kSpanWords<T>; ++i)
#pragma GCC unroll 8
          for (int m = 0; m < Rows; ++m) {
            uint32_t word;
            std::memcpy(&word, x.rows + m * weight.in_features + span * kSpan + i * kPerWord<T>, sizeof word);
            part[m][n] = dot<T>(part[m][n], splat_word(word), words[i]);
          }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      const float sum = Codes::kHasOffsets ? x.sums[m * weight.num_groups() + group] : 0;
#pragma GCC unroll 4
      for (int n = 0; n < Blocks; ++n)
        acc[m][n] = rescaled<Codes>(acc[m][n], part[m][n], tables.scale[n], tables.offset[n], sum);
    }
  }
  for (int m = 0; m < Rows; ++m)
    for (int n = 0; n < Blocks; ++n) totals[m * kTileBlocks + n] = acc[m][n];
}

// Many rows: a group is unpacked once for all of them.
template <class T, class Codes, int Blocks>
void unpacked_panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
  constexpr int64_t kDepth = kGroup / kPerWord<T>;
  alignas(64) uint32_t words[Blocks * kDepth * kLanes];
  const uint8_t* codes = weight.codes + block * weight.block_bytes();
  std::memset(totals, 0, x.num_rows * kTileBlocks * sizeof(Floats));
  for (int64_t group = 0; group < weight.num_groups(); ++group) {
    for (int n = 0; n < Blocks; ++n)
      for (int64_t span = 0; span < kGroup / kSpan; ++span) {
        Words unpacked[kSpanWords<T>];
        const int64_t place = group * kGroup / kSpan + span;
        Codes::template unpack<T>(codes + n * weight.block_bytes() + place * Codes::kSpanBytes, unpacked);
        for (int i = 0; i < kSpanWords<T>; ++i)
          store(words + (n * kDepth + span * kSpanWords<T> + i) * kLanes, unpacked[i]);
      }
    const GroupTables<Codes, Blocks> tables(weight, block, group);
    over_row_tiles<kTileRows>(x.num_rows, [&](int64_t row, auto height) {
      constexpr int kRows = decltype(height)::value;
      Floats part[kRows][Blocks] = {};
      multiply<T, kRows, Blocks>(x.rows + row * weight.in_features + group * kGroup, weight.in_features, words,
                                 kDepth * kLanes, kDepth, part);
      for (int m = 0; m < kRows; ++m) {
        const float sum = Codes::kHasOffsets ? x.sums[(row + m) * weight.num_groups() + group] : 0;
        for (int n = 0; n < Blocks; ++n) {
          Floats& total = totals[(row + m) * kTileBlocks + n];
          total = rescaled<Codes>(total, part[m][n], tables.scale[n], tables.offset[n], sum);
        }
      }
    });
  }
}

template <class T, class Codes, int Blocks>
void quantised_panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
  if (x.num_rows > kTileRows) return unpacked_panel<T, Codes, Blocks>(x, weight, block, totals);
  with_constant<kTileRows>(static_cast<int>(x.num_rows), [&](auto rows) {
    streamed_panel<T, Codes, decltype(rows)::value, Blocks>(x, weight, block, totals);
  });
}

// `Rows` by `Blocks` is the tile for matrices that are not quantised.
template <class T, int Rows, int Blocks>
void panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
  if (weight.format == Format::kInt8) return quantised_panel<T, Int8, Blocks>(x, weight, block, totals);
  if (weight.format == Format::kInt4) return quantised_panel<T, Int4, Blocks>(x, weight, block, totals);
  plain_panel<T, Rows, Blocks>(x.rows, x.num_rows, weight, block, totals);
}

}  // namespace trierarch
