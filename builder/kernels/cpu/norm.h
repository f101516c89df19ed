// RMS norm (Zhang and Sennrich, 2019), alone and with the residual it follows.
#pragma once

#include <cmath>

#include "element.h"

namespace trierarch {

// 1 / sqrt(mean(x²) + eps).
TRIERARCH_INLINE float inverse_rms(const float* x, int64_t size, float eps) {
  Floats squares = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats value = load<Floats>(x + i);
    squares += value * value;
  }
  float total = sum(squares);
  for (; i < size; ++i) total += x[i] * x[i];
  return 1.0f / std::sqrt(total / static_cast<float>(size) + eps);
}

// y = norm(x) * weight; y may be x.
template <class T>
TRIERARCH_INLINE void rms_norm(const float* x, const float* weight, int64_t size, float eps, T* y) {
  const float scale = inverse_rms(x, size, eps);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t left = size - i;
    if (left >= kLanes) {
      store_elements(y + i, load<Floats>(x + i) * scale * load<Floats>(weight + i));
      continue;
    }
    Floats value = {}, factor = {};
    std::memcpy(&value, x + i, left * sizeof(float));
    std::memcpy(&factor, weight + i, left * sizeof(float));
    store_some(y + i, value * scale * factor, left);
  }
}

}  // namespace trierarch
