// Tile: the one inner loop of every matrix product here, projections and attention alike.
//
// The right operand is *packed*: columns stand in blocks of sixteen, and a block is a run of word vectors, one for each
// word of depth: (column blocks, depth, 16 lanes). The left operand is plain rows. Each output element is summed by one
// accumulator over the whole depth in order, whatever the tile's size: a row's result does not depend on its neighbours,
// so that batching, chunking and drafting change no bit of it.
#pragma once

#include "element.h"

namespace trierarch {

// 24 accumulators, the weights and a broadcast fill 32 registers: a tile is six rows by four blocks, or eight by three.
constexpr int kTileRows = 6, kTileBlocks = 4;
constexpr int kTallRows = 8, kTallBlocks = 3;

// acc += one word of depth: `left` of each row times `right`.
template <class T, int Rows, int Blocks>
TRIERARCH_INLINE void multiply_word(const T* left, int64_t left_stride, const Words (&right)[Blocks],
                                    Floats (&acc)[Rows][Blocks]) {
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
    uint32_t word;
    std::memcpy(&word, left + m * left_stride, sizeof word);
    const Words broadcast = splat_word(word);
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) acc[m][n] = dot<T>(acc[m][n], broadcast, right[n]);
  }
}

template <class T, int Rows, int Blocks, bool Prefetch = false>
TRIERARCH_INLINE void multiply(const T* left, int64_t left_stride, const uint32_t* right, int64_t block_stride,
                               int64_t depth, Floats (&acc)[Rows][Blocks]) {
  // Far enough that a line has come from memory when it is read; the hardware stops at each page.
  constexpr int64_t kAhead = 16 * kLanes;
  for (int64_t d = 0; d < depth; ++d) {
    Words words[Blocks];
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) {
      const uint32_t* line = right + n * block_stride + d * kLanes;
      if constexpr (Prefetch) __builtin_prefetch(line + kAhead);
      words[n] = load<Words>(line);
    }
    multiply_word(left + d * kPerWord<T>, left_stride, words, acc);
  }
}

// The same where the right operand's blocks lie anywhere.
template <class T, int Rows, int Blocks>
TRIERARCH_INLINE void multiply(const T* left, int64_t left_stride, const uint32_t* const* right, int64_t depth,
                               Floats (&acc)[Rows][Blocks]) {
  for (int64_t d = 0; d < depth; ++d) {
    Words words[Blocks];
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) words[n] = load<Words>(right[n] + d * kLanes);
    multiply_word(left + d * kPerWord<T>, left_stride, words, acc);
  }
}

// Calls use(std::integral_constant<int, count>) for a count of 1 to Most that is known only as the program runs.
template <int Most, class Use>
TRIERARCH_INLINE void with_constant(int count, Use&& use) {
  if constexpr (Most > 1) {
    if (count < Most) return with_constant<Most - 1>(count, use);
  }
  use(std::integral_constant<int, Most>());
}

// Cuts `rows` into tiles of nearly equal height, at most `Most`: use(first row, number of rows as a constant).
template <int Most, class Use>
TRIERARCH_INLINE void over_row_tiles(int64_t rows, Use&& use) {
  int64_t left = (rows + Most - 1) / Most;
  for (int64_t row = 0; row < rows; --left) {
    const int64_t height = (rows - row + left - 1) / left;
    with_constant<Most>(static_cast<int>(height), [&](auto constant) { use(row, constant); });
    row += height;
  }
}

}  // namespace trierarch
