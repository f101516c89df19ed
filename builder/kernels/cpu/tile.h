// Tile: the one inner loop of every matrix product here, projections and attention alike.
//
// The right operand is *packed*: columns stand in blocks of sixteen, and a block is a run of word vectors, one for each
// word of depth: (column blocks, depth, 16 lanes). The left operand is plain rows. Each output element is summed by one
// accumulator over the whole depth in order, whatever the tile's size: a row's result does not depend on its neighbours,
// so that batching, chunking and drafting change no bit of it.
#pragma once

#include <algorithm>

#include "element.h"
#include "errand.h"

namespace trierarch {

// A tile's rows and blocks, and how many blocks of a matrix are worked on at once.
struct TileShape {
  int rows, blocks, panel_blocks;
};

// Accumulators, the weights and a broadcast fill the registers: 24 accumulators of 32 registers, 12 of 16. A wide tile
// reads the weights in long runs, a tall one goes over them less often.
#if defined(__AVX512F__)
constexpr TileShape kWide = {6, 4, 4}, kTall = {8, 3, 3};
#elif defined(__AVX2__)
constexpr TileShape kWide = {2, 2, 4}, kTall = {6, 1, 4};
#else
constexpr TileShape kWide = {1, 2, 4}, kTall = {2, 1, 4};
#endif

// Whether tall tiles cover `rows` in fewer passes over the matrix than wide ones.
constexpr bool is_tall(int64_t rows) {
  return (rows + kTall.rows - 1) / kTall.rows < (rows + kWide.rows - 1) / kWide.rows;
}

template <TileShape Shape>
using ShapeConstant = std::integral_constant<TileShape, Shape>;

// Calls use(shape as a constant) with the shape for `rows`.
template <class Use>
TRIERARCH_INLINE void with_shape(int64_t rows, Use&& use) {
  if (is_tall(rows)) use(ShapeConstant<kTall>());
  else use(ShapeConstant<kWide>());
}

// Bytes, far enough that a line has come from memory when it is read; the hardware stops at each page.
constexpr int64_t kAhead = 1024;

// acc += one word of depth: `left` of each row times `right`.
template <class T, int Rows, int Columns>
TRIERARCH_INLINE void multiply_word(const Operand<T>* left, int64_t left_stride, const WordRegister (&right)[Columns],
                                    FloatRegister (&acc)[Rows][Columns]) {
  unrolled<kSteps<T>>([&](auto step) TRIERARCH_LAMBDA_INLINE {
    WordRegister factors[Columns];
    unrolled<Columns>([&](auto c) TRIERARCH_LAMBDA_INLINE { factors[c] = factor<T>(right[c], step); });
    unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
      const WordRegister word = broadcast(left + m * left_stride + step);
      unrolled<Columns>([&](auto c) TRIERARCH_LAMBDA_INLINE {
        acc[m][c] = add_product<T>(acc[m][c], word, factors[c]);
      });
    });
  });
}

// `errand`: where HasErrand, as many lines as there is depth are asked for there.
template <class T, int Rows, int Columns, bool Prefetch = false, bool HasErrand = false>
TRIERARCH_INLINE void multiply(const Operand<T>* left, int64_t left_stride, const uint32_t* right, int64_t block_stride,
                               int64_t depth, FloatRegister (&acc)[Rows][Columns], const char* errand = nullptr) {
  for (int64_t d = 0; d < depth; ++d) {
    WordRegister words[Columns];
    if (HasErrand) __builtin_prefetch(errand + d * Errand::kLine);
    unrolled<Columns>([&](auto c) TRIERARCH_LAMBDA_INLINE {
      const uint32_t* line = right + c / kParts * block_stride + d * kLanes;
      if (Prefetch && c % kParts == 0) __builtin_prefetch(line + kAhead / 4);
      words[c] = load<WordRegister>(line + c % kParts * kRegisterLanes);
    });
    multiply_word<T>(left + d * kPerWord<T>, left_stride, words, acc);
  }
}

// The same where the right operand's blocks lie anywhere.
template <class T, int Rows, int Columns>
TRIERARCH_INLINE void multiply(const Operand<T>* left, int64_t left_stride, const uint32_t* const* right, int64_t depth,
                               FloatRegister (&acc)[Rows][Columns]) {
  for (int64_t d = 0; d < depth; ++d) {
    WordRegister words[Columns];
    unrolled<Columns>([&](auto c) TRIERARCH_LAMBDA_INLINE {
      words[c] = load<WordRegister>(right[c / kParts] + d * kLanes + c % kParts * kRegisterLanes);
    });
    multiply_word<T>(left + d * kPerWord<T>, left_stride, words, acc);
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

// Cuts `blocks` into tiles `Most` wide and a last one: use(first block, number of blocks as a constant).
template <int Most, class Use>
TRIERARCH_INLINE void over_block_tiles(int64_t blocks, Use&& use) {
  for (int64_t first = 0; first < blocks; first += Most)
    with_constant<Most>(static_cast<int>(std::min<int64_t>(Most, blocks - first)), [&](auto width) { use(first, width); });
}

}  // namespace trierarch
