// Panel: a few blocks of a packed matrix times some rows of activations, whatever the matrix's format.
//
// Each output element is summed in one order whatever the number of rows: over the whole depth, or, of a quantised
// matrix, within each group and then group by group.
#pragma once

#include "activations.h"
#include "tile.h"

namespace trierarch {

constexpr int64_t kRowChunk = 96;
constexpr int kIntegerRows = 3;  // of a tile with two accumulators an output: three rows by four blocks

// A panel's result: row m, block n at [m * kTileBlocks + n].
using Totals = Floats*;

template <class T, int Rows, int Blocks>
void plain_panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
  const auto* words = reinterpret_cast<const uint32_t*>(weight.blocks + block * weight.block_bytes());
  const int64_t depth = x.width / kPerWord<T>, stride = depth * kLanes;
  over_row_tiles<Rows>(x.num_rows, [&](int64_t row, auto height) {
    constexpr int kRows = decltype(height)::value;
    Floats acc[kRows][Blocks] = {};
    const T* left = x.rows + row * x.width;
    if (row == 0) multiply<T, kRows, Blocks, true>(left, x.width, words, stride, depth, acc);
    else multiply<T, kRows, Blocks>(left, x.width, words, stride, depth, acc);
    for (int m = 0; m < kRows; ++m)
      for (int n = 0; n < Blocks; ++n) totals[(row + m) * kTileBlocks + n] = acc[m][n];
  });
}

// A quad's codes as one vector for each of its inputs, or for each pair.
template <class T, class Codes>
TRIERARCH_INLINE void store_quad(Words quad, uint32_t* words) {
  Floats inputs[kQuad];
  for (int i = 0; i < kQuad; ++i) {
    const Ints code = reinterpret_cast<Ints>(quad >> 8 * i & 255u) - Codes::kBias;
    inputs[i] = __builtin_convertvector(code, Floats);
  }
  for (int i = 0; i < kQuad / kPerWord<T>; ++i) {
    if constexpr (kPerWord<T> == 1) store(words + i * kLanes, inputs[i]);
    // Integers of at most eight bits lose nothing as bfloat16, which is the upper half of a float32.
    else store(words + i * kLanes, as_words(inputs[2 * i]) >> 16 | (as_words(inputs[2 * i + 1]) & 0xffff0000u));
  }
}

// Codes become words of T, once a group for all rows.
template <class T, class Codes, int Blocks>
void converted_panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
  constexpr int64_t kDepth = kGroup / kPerWord<T>, kStride = kDepth * kLanes;
  uint32_t words[Blocks * kStride];
  const int64_t block_stride = weight.block_bytes();
  const uint8_t* first = weight.blocks + block * block_stride;
  std::memset(totals, 0, x.num_rows * kTileBlocks * sizeof(Floats));
  for (int64_t group = 0; group < weight.num_groups(); ++group, first += Codes::kGroupBytes) {
    for (int n = 0; n < Blocks; ++n) {
      const uint8_t* codes = first + n * block_stride;
      for (int64_t run = 0; run < kGroupQuads / Codes::kRunQuads; ++run) {
        Words quads[Codes::kRunQuads];
        Codes::load_run(codes, run, quads);
        for (int64_t q = 0; q < Codes::kRunQuads; ++q)
          store_quad<T, Codes>(quads[q], words + n * kStride + (run * Codes::kRunQuads + q) * kQuad / kPerWord<T> * kLanes);
      }
    }
    const GroupTables<Codes, Blocks> tables(first, block_stride);
    over_row_tiles<kTileRows>(x.num_rows, [&](int64_t row, auto height) {
      constexpr int kRows = decltype(height)::value;
      Floats part[kRows][Blocks] = {};
      multiply<T, kRows, Blocks>(x.rows + row * x.width + group * kGroup, x.width, words, kStride, kDepth, part);
      for (int m = 0; m < kRows; ++m)
        for (int n = 0; n < Blocks; ++n)
          add_group<Codes>(totals[(row + m) * kTileBlocks + n], part[m][n], tables.scale[n], tables.offset[n],
                           x.sums[(row + m) * x.num_groups() + group]);
    });
  }
}

#if defined(__AVX512VNNI__)

// acc + the sum of four products, lane by lane; codes are unsigned bytes.
TRIERARCH_INLINE Ints dot_bytes(Ints acc, Words codes, const int8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(codes), _mm512_set1_epi32(word)));
}

// One group of some rows, added to their totals. codes: of the panel's first block.
template <class Codes, int Rows, int Blocks>
TRIERARCH_INLINE void integer_tile(const Activations<BFloat16>& x, int64_t row, int64_t group, const uint8_t* codes,
                                   int64_t block_stride, const GroupTables<Codes, Blocks>& tables, Totals totals) {
  Ints low[Rows][Blocks] = {}, high[Rows][Blocks] = {};
  const int64_t first = row * x.width + group * kGroup;
#pragma GCC unroll 8
  for (int64_t run = 0; run < kGroupQuads / Codes::kRunQuads; ++run) {
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) {
      Words quads[Codes::kRunQuads];
      Codes::load_run(codes + n * block_stride, run, quads);
#pragma GCC unroll 2
      for (int64_t q = 0; q < Codes::kRunQuads; ++q)
#pragma GCC unroll 4
        for (int m = 0; m < Rows; ++m) {
          const int64_t input = first + m * x.width + (run * Codes::kRunQuads + q) * kQuad;
          low[m][n] = dot_bytes(low[m][n], quads[q], x.low + input);
          high[m][n] = dot_bytes(high[m][n], quads[q], x.high + input);
        }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
    const int64_t table = (row + m) * x.num_groups() + group;
    const int32_t excess = Codes::kBias * x.integer_sums[table];
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) {
      const Ints exact = (high[m][n] << 8) + low[m][n] - excess;
      const Floats part = __builtin_convertvector(exact, Floats) * x.scales[table];
      add_group<Codes>(totals[m * kTileBlocks + n], part, tables.scale[n], tables.offset[n], x.sums[table]);
    }
  }
}

template <class Codes, int Blocks>
void integer_panel(const Activations<BFloat16>& x, const Packed& weight, int64_t block, Totals totals) {
  const int64_t block_stride = weight.block_bytes(), num_groups = weight.num_groups();
  const int64_t num_whole = x.num_rows / kIntegerRows * kIntegerRows;
  const uint8_t* codes = weight.blocks + block * block_stride;
  // Totals of the last, lower tile stay in registers where there is no other.
  with_constant<kIntegerRows>(static_cast<int>(x.num_rows - num_whole + 1), [&](auto rows_and_one) {
    constexpr int kRows = decltype(rows_and_one)::value - 1;
    Floats rest[(kRows + 1) * kTileBlocks] = {};
    std::memset(totals, 0, num_whole * kTileBlocks * sizeof(Floats));
    for (int64_t group = 0; group < num_groups; ++group, codes += Codes::kGroupBytes) {
      const GroupTables<Codes, Blocks> tables(codes, block_stride);
      for (int64_t row = 0; row < num_whole; row += kIntegerRows)
        integer_tile<Codes, kIntegerRows, Blocks>(x, row, group, codes, block_stride, tables, totals + row * kTileBlocks);
      if constexpr (kRows > 0)
        integer_tile<Codes, kRows, Blocks>(x, num_whole, group, codes, block_stride, tables, rest);
    }
    for (int i = 0; i < kRows * kTileBlocks; ++i) totals[num_whole * kTileBlocks + i] = rest[i];
  });
}

#endif

template <class T, class Codes, int Blocks>
void quantised_panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
#if defined(__AVX512VNNI__)
  if constexpr (kIsInteger<T>) return integer_panel<Codes, Blocks>(x, weight, block, totals);
#endif
  if constexpr (!kIsInteger<T>) converted_panel<T, Codes, Blocks>(x, weight, block, totals);
}

// `Rows` by `Blocks` is the tile for matrices that are not quantised.
template <class T, int Rows, int Blocks>
void panel(const Activations<T>& x, const Packed& weight, int64_t block, Totals totals) {
  if (weight.format == Format::kInt8) return quantised_panel<T, Int8, Blocks>(x, weight, block, totals);
  if (weight.format == Format::kInt4) return quantised_panel<T, Int4, Blocks>(x, weight, block, totals);
  plain_panel<T, Rows, Blocks>(x, weight, block, totals);
}

}  // namespace trierarch
