// Sixteen 32-bit lanes, written with the compiler's vector extension: one AVX-512 register, two of AVX2, four of SSE or
// NEON. The arithmetic is the same on each. Inner loops name the registers, since the compiler keeps what is wider than
// one in memory from one round of a loop to the next.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#define TRIERARCH_INLINE inline __attribute__((always_inline))
#define TRIERARCH_LAMBDA_INLINE __attribute__((always_inline))

namespace trierarch {

constexpr int kLanes = 16;

using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16;
#elif defined(__AVX2__)
constexpr int kRegisterLanes = 8;
#else
constexpr int kRegisterLanes = 4;
#endif
constexpr int kParts = kLanes / kRegisterLanes;

// The registers of some blocks of sixteen: of block n, kParts from n * kParts on.
template <int Blocks>
constexpr int kColumns = Blocks * kParts;

using FloatRegister = float __attribute__((vector_size(4 * kRegisterLanes)));
using WordRegister = uint32_t __attribute__((vector_size(4 * kRegisterLanes)));
using IntRegister = int32_t __attribute__((vector_size(4 * kRegisterLanes)));

template <int... I, class Use>
TRIERARCH_INLINE void unrolled(std::integer_sequence<int, I...>, Use&& use) {
  (use(std::integral_constant<int, I>()), ...);
}

// Calls use(i as a constant) for each i below Count. What a loop indexes, the compiler may leave in memory.
template <int Count, class Use>
TRIERARCH_INLINE void unrolled(Use&& use) {
  unrolled(std::make_integer_sequence<int, Count>(), use);
}

template <class V>
TRIERARCH_INLINE V load(const void* source) {
  V value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

template <class V>
TRIERARCH_INLINE void store(void* target, V value) {
  std::memcpy(target, &value, sizeof value);
}

TRIERARCH_INLINE Floats splat(float value) { return Floats{} + value; }
TRIERARCH_INLINE Words splat_word(uint32_t value) { return Words{} + value; }
TRIERARCH_INLINE Floats as_floats(Words words) { return reinterpret_cast<Floats>(words); }
TRIERARCH_INLINE Words as_words(Floats floats) { return reinterpret_cast<Words>(floats); }
TRIERARCH_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

template <int Step, class Op, int... I>
TRIERARCH_INLINE Floats fold_step(Floats value, Op op, std::integer_sequence<int, I...>) {
  return op(value, __builtin_shufflevector(value, value, (I ^ Step)...));
}

template <class Op>
TRIERARCH_INLINE float fold(Floats value, Op op) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  value = fold_step<8>(value, op, lanes);
  value = fold_step<4>(value, op, lanes);
  value = fold_step<2>(value, op, lanes);
  return fold_step<1>(value, op, lanes)[0];
}

TRIERARCH_INLINE float sum(Floats value) {
  return fold(value, [](Floats a, Floats b) __attribute__((always_inline)) { return a + b; });
}

TRIERARCH_INLINE float largest(Floats value) {
  return fold(value, [](Floats a, Floats b) __attribute__((always_inline)) { return maximum(a, b); });
}

TRIERARCH_INLINE int32_t sum_of(Ints value) {
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += value[i];
  return total;
}

// Integers of at most eight bits.
TRIERARCH_INLINE void store_bytes(int8_t* target, Ints value) {
  using Bytes = int8_t __attribute__((vector_size(kLanes)));
  using Shorts = int16_t __attribute__((vector_size(2 * kLanes)));
  store(target, __builtin_convertvector(__builtin_convertvector(value, Shorts), Bytes));
}

// e^x to within 2 units in the last place; below -87 it is 0, as softmax wants of a masked score.
TRIERARCH_INLINE Floats exponential(Floats x) {
  const Floats rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves an integer in the low mantissa bits
  const Floats bounded = x > 88.0f ? splat(88.0f) : (x < -87.0f ? splat(-87.0f) : x);
  const Floats shifted = bounded * 1.44269504f + rounder;
  const Floats n = shifted - rounder;
  const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // Cody and Waite's two-part ln 2
  Floats p = splat(1.9875691500e-4f);                                  // Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Words power = (as_words(shifted) - as_words(rounder)) << 23;
  const Floats result = as_floats(as_words(p) + power);
  return x < -87.0f ? Floats{} : result;
}

TRIERARCH_INLINE Floats hyperbolic_tangent(Floats x) {
  const Floats magnitude = x < 0.0f ? -x : x;
  const Floats e = exponential(magnitude * -2.0f);
  const Floats t = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -t : t;
}

// Sixteen rows of sixteen words become sixteen columns: the off-diagonal quarters change places, then the quarters' own.
template <int Step, int... I>
TRIERARCH_INLINE void exchange(Words& a, Words& b, std::integer_sequence<int, I...>) {
  const Words low = __builtin_shufflevector(a, b, ((I & Step) == 0 ? I : kLanes + I - Step)...);
  const Words high = __builtin_shufflevector(a, b, ((I & Step) == 0 ? I + Step : kLanes + I)...);
  a = low;
  b = high;
}

template <int Step>
TRIERARCH_INLINE void exchange_all(Words (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if ((i & Step) == 0) exchange<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes>());
}

TRIERARCH_INLINE void transpose(Words (&rows)[kLanes]) {
  exchange_all<8>(rows);
  exchange_all<4>(rows);
  exchange_all<2>(rows);
  exchange_all<1>(rows);
}

}  // namespace trierarch
