// Gate activations of the feed-forward network.
#pragma once

#include "lanes.h"

namespace trierarch {

struct Silu {
  TRIERARCH_INLINE FloatRegister operator()(FloatRegister x) const { return x / (1.0f + exponential(-x)); }
};

// The tanh approximation of Hendrycks and Gimpel (2016).
struct GeluTanh {
  TRIERARCH_INLINE FloatRegister operator()(FloatRegister x) const {
    const FloatRegister inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
  }
};

}  // namespace trierarch
