// Element: the type of weights, activations and KV. A *word* is 32 bits: one float32 or a pair of bfloat16. Every inner
// product walks words, so that one kernel serves both types.
#pragma once

#include "lanes.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Left free, the compiler moves all broadcasts of a tile to the front and runs out of AVX2's sixteen registers, or adds
// in another order: there it is told the instructions one by one.
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define TRIERARCH_ORDERED
#endif

namespace trierarch {

struct BFloat16 {
  uint16_t bits;
};

template <class T>
constexpr int kPerWord = 4 / sizeof(T);

// What stands left of words of T in a product: T where the processor multiplies it, else float32, which rounds nothing.
#if defined(__AVX512BF16__)
template <class T>
using Operand = T;
#else
template <class T>
using Operand = float;
#endif

// A word's multiplications, one after the other.
template <class T>
constexpr int kSteps = kPerWord<T> / kPerWord<Operand<T>>;

// Rounds to nearest, ties to even.
TRIERARCH_INLINE Halves to_halves(Floats value) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(value));
#else
  auto parts = Parts<WordRegister>::of(value);
  unrolled<kParts>([&](auto p) TRIERARCH_LAMBDA_INLINE {
    const WordRegister words = parts.at[p], nan = WordRegister{} + 0x7fc0u;
    const auto floats = reinterpret_cast<FloatRegister>(words);
    const WordRegister rounded = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
    parts.at[p] = floats == floats ? rounded : nan;
  });
  return __builtin_convertvector(parts.template whole<Words>(), Halves);
#endif
}

TRIERARCH_INLINE float to_float(BFloat16 value) {
  const uint32_t word = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &word, sizeof result);
  return result;
}

TRIERARCH_INLINE float to_float(float value) { return value; }

template <class V>
TRIERARCH_INLINE void store_elements(float* target, V value) {
  store(target, value);
}
TRIERARCH_INLINE void store_elements(BFloat16* target, Floats value) { store(target, to_halves(value)); }

// The first `count` of the lanes.
template <class T, class V>
TRIERARCH_INLINE void store_some(T* target, V value, int64_t count) {
  constexpr int64_t kCount = sizeof(V) / sizeof(float);
  if (count >= kCount) return store_elements(target, value);
  T lanes[kCount];
  store_elements(lanes, value);
  std::memcpy(target, lanes, count * sizeof(T));
}

// What a step multiplies of words of T.
template <class T>
TRIERARCH_INLINE WordRegister factor(WordRegister words, int step) {
  if constexpr (kSteps<T> == 1) return words;
  return step == 0 ? words << 16 : words & 0xffff0000u;
}

// One word for all lanes.
TRIERARCH_INLINE WordRegister broadcast(const void* source) {
#if defined(TRIERARCH_ORDERED)
  WordRegister words;
  asm volatile("vbroadcastss %1, %0" : "=x"(words) : "m"(*static_cast<const uint32_t*>(source)));
  return words;
#else
  uint32_t word;
  std::memcpy(&word, source, sizeof word);
  return WordRegister{} + word;
#endif
}

// acc + left·right, lane by lane; of a pair, both products are added.
template <class T>
TRIERARCH_INLINE FloatRegister add_product(FloatRegister acc, WordRegister left, WordRegister right) {
#if defined(__AVX512BF16__)
  if constexpr (kPerWord<T> == 2)
    return reinterpret_cast<FloatRegister>(
        _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right)));
#endif
#if defined(TRIERARCH_ORDERED)
  asm volatile("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(left), "x"(right));
#else
  acc += reinterpret_cast<FloatRegister>(left) * reinterpret_cast<FloatRegister>(right);
#endif
  return acc;
}

// acc + left·right, where each lane is a pair of 16-bit integers.
TRIERARCH_INLINE IntRegister add_pairs(IntRegister acc, WordRegister left, WordRegister right) {
#if defined(TRIERARCH_ORDERED)
  IntRegister products;
  asm volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(products) : "x"(left), "x"(right));
#elif defined(__AVX512BW__)
  acc += reinterpret_cast<IntRegister>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(left), reinterpret_cast<__m512i>(right)));
#elif defined(__SSE2__)
  acc += reinterpret_cast<IntRegister>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(left), reinterpret_cast<__m128i>(right)));
#else
  const auto a = reinterpret_cast<IntRegister>(left), b = reinterpret_cast<IntRegister>(right);
  acc += (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
  return acc;
}

}  // namespace trierarch
