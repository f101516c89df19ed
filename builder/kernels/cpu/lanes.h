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

template <class V = Floats>
TRIERARCH_INLINE V splat(float value) {
  return V{} + value;
}
TRIERARCH_INLINE Floats as_floats(Words words) { return reinterpret_cast<Floats>(words); }
TRIERARCH_INLINE Words as_words(Floats floats) { return reinterpret_cast<Words>(floats); }

// The registers of a sixteen, apart. Comparisons and choices must be made of them: the compiler makes those of wider
// vectors lane by lane, many times as slowly.
template <class Register>
struct Parts {
  Register at[kParts];

  template <class V>
  static TRIERARCH_INLINE Parts of(const V& value) {
    static_assert(sizeof(V) == sizeof(Parts));
    return load<Parts>(&value);
  }

  template <class V>
  TRIERARCH_INLINE V whole() const {
    static_assert(sizeof(V) == sizeof(Parts));
    return load<V>(at);
  }
};

TRIERARCH_INLINE FloatRegister larger(FloatRegister a, FloatRegister b) { return a > b ? a : b; }

TRIERARCH_INLINE Floats maximum(Floats a, Floats b) {
  auto parts = Parts<FloatRegister>::of(a);
  const auto others = Parts<FloatRegister>::of(b);
  unrolled<kParts>([&](auto p) TRIERARCH_LAMBDA_INLINE { parts.at[p] = larger(parts.at[p], others.at[p]); });
  return parts.template whole<Floats>();
}

TRIERARCH_INLINE Floats magnitude(Floats value) { return as_floats(as_words(value) & 0x7fffffffu); }

template <int Step, class Op, class Register, int... I>
TRIERARCH_INLINE Register fold_step(Register value, Op op, std::integer_sequence<int, I...>) {
  return op(value, __builtin_shufflevector(value, value, (I ^ Step)...));
}

template <int Step, class Op, class Register>
TRIERARCH_INLINE Register fold_register(Register value, Op op) {
  if constexpr (Step == 0) return value;
  else return fold_register<Step / 2>(fold_step<Step>(value, op, std::make_integer_sequence<int, kRegisterLanes>()), op);
}

// Lane i meets i ^ 8, then i ^ 4, i ^ 2 and i ^ 1, in whatever registers they are.
template <class Op, class Register>
TRIERARCH_INLINE auto fold(Parts<Register> parts, Op op) {
  for (int half = kParts / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts.at[i] = op(parts.at[i], parts.at[i + half]);
  return fold_register<kRegisterLanes / 2>(parts.at[0], op)[0];
}

TRIERARCH_INLINE float sum(Floats value) {
  return fold(Parts<FloatRegister>::of(value),
              [](FloatRegister a, FloatRegister b) __attribute__((always_inline)) { return a + b; });
}

TRIERARCH_INLINE float largest(Floats value) {
  return fold(Parts<FloatRegister>::of(value),
              [](FloatRegister a, FloatRegister b) __attribute__((always_inline)) { return larger(a, b); });
}

TRIERARCH_INLINE int32_t sum_of(Ints value) {
  return fold(Parts<IntRegister>::of(value),
              [](IntRegister a, IntRegister b) __attribute__((always_inline)) { return a + b; });
}

// 0, 1, ... of a register.
template <int... I>
TRIERARCH_INLINE IntRegister lane_numbers(std::integer_sequence<int, I...>) {
  return IntRegister{I...};
}
TRIERARCH_INLINE IntRegister lane_numbers() { return lane_numbers(std::make_integer_sequence<int, kRegisterLanes>()); }

// Integers of at most eight bits.
TRIERARCH_INLINE void store_bytes(int8_t* target, Ints value) {
  using Bytes = int8_t __attribute__((vector_size(kLanes)));
  using Shorts = int16_t __attribute__((vector_size(2 * kLanes)));
  store(target, __builtin_convertvector(__builtin_convertvector(value, Shorts), Bytes));
}

// e^x to within 2 units in the last place; below -87 it is 0, as softmax wants of a masked score.
TRIERARCH_INLINE FloatRegister exponential(FloatRegister x) {
  using V = FloatRegister;
  const V rounder = splat<V>(12582912.0f);  // 1.5 * 2^23: adding it leaves an integer in the low mantissa bits
  const V bounded = x > 88.0f ? splat<V>(88.0f) : (x < -87.0f ? splat<V>(-87.0f) : x);
  const V shifted = bounded * 1.44269504f + rounder;
  const V n = shifted - rounder;
  const V r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // Cody and Waite's two-part ln 2
  V p = splat<V>(1.9875691500e-4f);                               // Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const WordRegister power = (reinterpret_cast<WordRegister>(shifted) - reinterpret_cast<WordRegister>(rounder)) << 23;
  const V result = reinterpret_cast<V>(reinterpret_cast<WordRegister>(p) + power);
  return x < -87.0f ? V{} : result;
}

TRIERARCH_INLINE FloatRegister hyperbolic_tangent(FloatRegister x) {
  const FloatRegister size = x < 0.0f ? -x : x;
  const FloatRegister e = exponential(size * -2.0f);
  const FloatRegister t = (1.0f - e) / (1.0f + e);
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
