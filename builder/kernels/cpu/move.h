// Moves: an adapter's tensors, as its file has them, to where the kernels read them.
#pragma once

#include <vector>

#include "pack.h"

namespace trierarch {

inline int64_t element_bytes(int64_t element) { return Format{element} == Format::kFloat32 ? 4 : 2; }

// The rows, each with zeros behind it up to an even number of elements; on a word.
inline std::vector<uint32_t> even_rows(const TrierarchMove& move, int64_t columns) {
  const int64_t from = move.columns * element_bytes(move.element), to = columns * element_bytes(move.element);
  std::vector<uint32_t> rows(move.rows * to / 4);
  for (int64_t i = 0; i < move.rows; ++i)
    std::memcpy(rows.data() + i * to / 4, static_cast<const uint8_t*>(move.source) + i * from, from);
  return rows;
}

inline void pack_move(const TrierarchMove& move, Team& team) {
  TrierarchMatrix matrix = {};
  matrix.format = move.element;
  matrix.out_features = move.rows;
  matrix.in_features = move.columns + move.columns % 2;
  matrix.codes = move.source;
  std::vector<uint32_t> rows;
  if (move.columns % 2 != 0 || reinterpret_cast<uintptr_t>(move.source) % 4 != 0) {
    rows = even_rows(move, matrix.in_features);
    matrix.codes = rows.data();
  }
  Packer(matrix, move.target).run(team);
}

inline void copy_move(const TrierarchMove& move) {
  const int64_t num_bytes = move.rows * move.columns * element_bytes(move.element);
  std::memcpy(move.target, move.source, num_bytes);
  std::memset(static_cast<uint8_t*>(move.target) + num_bytes, 0, move.num_zero_bytes);
}

inline void make_moves(const TrierarchMove* moves, int64_t count) {
  Meeting meeting(1);
  Team team(meeting, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (moves[i].is_packed) pack_move(moves[i], team);
    else copy_move(moves[i]);
  }
}

}  // namespace trierarch
