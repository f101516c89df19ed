// Packed matrices: (out_features, in_features) as blocks of sixteen outputs, each a run of word vectors over the inputs
// (tile.h reads them so). A decode step streams every block once, front to back. A *gated* matrix is gate over up; its
// blocks alternate, gate 0, up 0, gate 1, up 1, so that the two of an output meet in one tile.
#pragma once

#include "element.h"
#include "team.h"

namespace trierarch {

constexpr int64_t blocks_of(int64_t columns) { return (columns + kLanes - 1) / kLanes; }

template <class T>
struct Packed {
  const uint32_t* words;
  const float* bias;      // (columns) or null
  int64_t columns;        // output features; of a gated matrix, of one half
  int64_t depth;          // words of one output's inputs
  int64_t block_stride() const { return depth * kLanes; }
};

// Sixteen rows of `depth` words, transposed to depth vectors of sixteen; a null row is zero.
TRIERARCH_INLINE void pack_block(const uint32_t* const (&rows)[kLanes], int64_t depth, uint32_t* packed) {
  int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    Words words[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) words[i] = rows[i] ? load<Words>(rows[i] + d) : Words{};
    transpose(words);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(packed + (d + i) * kLanes, words[i]);
  }
  for (; d < depth; ++d)
    for (int i = 0; i < kLanes; ++i) packed[d * kLanes + i] = rows[i] ? rows[i][d] : 0;
}

// Block i of `weight` (columns, depth words) goes to block i * step of `packed`.
inline void pack_matrix(const uint32_t* weight, int64_t columns, int64_t depth, int64_t step, uint32_t* packed,
                        Team& team) {
  team.share(blocks_of(columns), 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const uint32_t* rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t column = block * kLanes + i;
        rows[i] = column < columns ? weight + column * depth : nullptr;
      }
      pack_block(rows, depth, packed + block * step * depth * kLanes);
    }
  });
}

}  // namespace trierarch
