// Partial: attention over some of the keys, kept so that another part can be added: for each row the largest score, the
// sum of exp(score - largest), and the values summed with those weights (Milakov and Gimelshein, 2018).
#pragma once

#include <cmath>
#include <limits>

#include "element.h"

namespace trierarch {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Partial {
  float* largest;  // (rows), kNothing where no key was seen
  float* total;    // (rows)
  float* values;   // (rows, width)
  int64_t width;   // head_dim, a multiple of kLanes

  void clear(int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) largest[r] = kNothing, total[r] = 0;
    std::memset(values, 0, rows * width * sizeof(float));
  }

  Partial from(int64_t row) const { return {largest + row, total + row, values + row * width, width}; }

  void add(const Partial& other, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) {
      if (other.largest[r] == kNothing) continue;
      const float most = std::fmax(largest[r], other.largest[r]);
      const float mine = std::exp(largest[r] - most), theirs = std::exp(other.largest[r] - most);
      largest[r] = most;
      total[r] = total[r] * mine + other.total[r] * theirs;
      for (int64_t i = r * width; i < (r + 1) * width; i += kLanes)
        store(values + i, load<Floats>(values + i) * mine + load<Floats>(other.values + i) * theirs);
    }
  }

  template <class T>
  void finish(int64_t row, T* result) const {
    const Floats scale = splat(1.0f / total[row]);
    for (int64_t i = 0; i < width; i += kLanes) store_elements(result + i, load<Floats>(values + row * width + i) * scale);
  }
};

}  // namespace trierarch
