// Rotary position embedding (Su et al., 2021) in Hugging Face's convention: element j pairs with j + rotary_dim / 2.
#pragma once

#include <cmath>
#include <cstdint>

#include "abi.h"

namespace trierarch {

// table: rotary_dim / 2 cosines, then as many sines.
inline void rope_table(const TrierarchRope& rope, int64_t position, float* table) {
  const int64_t half = rope.rotary_dim / 2;
  const float factor = static_cast<float>(rope.attention_factor);
  for (int64_t j = 0; j < half; ++j) {
    const float angle = static_cast<float>(position) * rope.inv_freq[j];
    table[j] = std::cos(angle) * factor;
    table[half + j] = std::sin(angle) * factor;
  }
}

inline void rotate(float* head, const float* table, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    const float a = head[j], b = head[half + j];
    head[j] = a * table[j] - b * table[half + j];
    head[half + j] = b * table[j] + a * table[half + j];
  }
}

}  // namespace trierarch
