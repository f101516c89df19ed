// Errand: memory that a thread asks for while it computes something else.
//
// The adapters of a step lie in many places, and each is read in runs too short for the hardware to see coming. Tiles have
// time to spare, the more rows they have: for each word of depth they ask for a line of what the next layer will want.
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace trierarch {

class Errand {
 public:
  static constexpr int64_t kLine = 64;

  void clear() { pieces_.clear(); }

  // This thread's share of `num_bytes` from `begin` on, of which `size` threads each take one.
  void add(const void* begin, int64_t num_bytes, int member, int size) {
    const int64_t share = (num_bytes + size - 1) / size, first = member * share;
    if (first < num_bytes) pieces_.push_back({static_cast<const char*>(begin) + first, std::min(share, num_bytes - first)});
  }

  // Where the next `num_lines` lines are to be asked for; null where nothing is left. They may reach beyond what was added,
  // which does no harm: nothing is read.
  const char* take(int64_t num_lines) {
    if (pieces_.empty()) return nullptr;
    Piece& piece = pieces_.back();
    const char* place = piece.place;
    piece.place += num_lines * kLine;
    piece.num_bytes -= num_lines * kLine;
    if (piece.num_bytes <= 0) pieces_.pop_back();
    return place;
  }

 private:
  struct Piece {
    const char* place;
    int64_t num_bytes;
  };
  std::vector<Piece> pieces_;
};

}  // namespace trierarch
