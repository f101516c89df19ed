// Quantised codes on their way to the tile: exact small integers of T. A group's products are summed before its scale
// is applied, so nothing is rounded a second time.
#pragma once

#include "pack.h"

namespace trierarch {

constexpr int64_t kSpan = 8;  // inputs that are unpacked at once; a group is four spans
template <class T>
constexpr int64_t kSpanWords = kSpan / kPerWord<T>;

using Bytes = int8_t __attribute__((vector_size(16)));

// Integers of at most eight bits lose nothing as bfloat16, which is the upper half of a float32.
TRIERARCH_INLINE Words pair_up(Floats even, Floats odd) {
  return as_words(even) >> 16 | (as_words(odd) & 0xffff0000u);
}

TRIERARCH_INLINE Floats float_of(Words integers) {
  return __builtin_convertvector(reinterpret_cast<Ints>(integers), Floats);
}

struct Int8 {
  static constexpr bool kHasOffsets = false;
  static constexpr int64_t kSpanBytes = kSpan * kLanes;

  template <class T>
  static TRIERARCH_INLINE void unpack(const uint8_t* span, Words (&words)[kSpanWords<T>]) {
#pragma GCC unroll 8
    for (int i = 0; i < kSpanWords<T>; ++i) {
      if constexpr (kPerWord<T> == 1) words[i] = as_words(input(span, i));
      else words[i] = pair_up(input(span, 2 * i), input(span, 2 * i + 1));
    }
  }

  static int code(const uint8_t* block, int64_t input, int64_t lane) {
    return static_cast<int8_t>(block[input * kLanes + lane]);
  }

 private:
  static TRIERARCH_INLINE Floats input(const uint8_t* span, int i) {
    return __builtin_convertvector(__builtin_convertvector(load<Bytes>(span + i * kLanes), Ints), Floats);
  }
};

struct Int4 {
  static constexpr bool kHasOffsets = true;
  static constexpr int64_t kSpanBytes = kSpan * kLanes / 2;

  template <class T>
  static TRIERARCH_INLINE void unpack(const uint8_t* span, Words (&words)[kSpanWords<T>]) {
    const Words codes = load<Words>(span);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      if constexpr (kPerWord<T> == 1) {
        words[2 * s] = as_words(float_of(codes >> 4 * s & 15u));
        words[2 * s + 1] = as_words(float_of(codes >> (4 * s + 16) & 15u));
      } else {
        words[s] = pair(codes, s);
      }
    }
  }

  static int code(const uint8_t* block, int64_t input, int64_t lane) {
    uint32_t word;
    std::memcpy(&word, block + (input / kSpan * kLanes + lane) * sizeof word, sizeof word);
    return static_cast<int>(word >> (input % kSpan / 2 * 4 + input % 2 * 16) & 15u);
  }

 private:
  static TRIERARCH_INLINE Words pair(Words codes, int s) {
#if defined(__AVX512BW__)
    // The permutation looks at five bits of each 16-bit lane; with the table there twice the fifth does not matter.
    static constexpr uint16_t k[16] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                       0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
    const Halves half = load<Halves>(k);
    const __m512i table = _mm512_broadcast_i64x4(reinterpret_cast<__m256i>(half));
    const __m512i shifted = _mm512_srli_epi16(reinterpret_cast<__m512i>(codes), 4 * s);
    return reinterpret_cast<Words>(_mm512_permutexvar_epi16(shifted, table));
#else
    return pair_up(float_of(codes >> 4 * s & 15u), float_of(codes >> (4 * s + 16) & 15u));
#endif
  }
};

// Sixteen float16.
TRIERARCH_INLINE Floats load_halves(const uint16_t* source) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(load<__m256i>(source)));
#else
  // Exponent and mantissa stand right once shifted; the exponents' biases differ by 112.
  const Words bits = __builtin_convertvector(load<Halves>(source), Words);
  const Floats magnitude = as_floats((bits & 0x7fffu) << 13) * 0x1p112f;
  return as_floats(as_words(magnitude) | (bits & 0x8000u) << 16);
#endif
}

TRIERARCH_INLINE float half_to_float(uint16_t bits) {
  float magnitude;
  const uint32_t word = (bits & 0x7fffu) << 13;
  std::memcpy(&magnitude, &word, sizeof magnitude);
  magnitude *= 0x1p112f;
  return bits & 0x8000u ? -magnitude : magnitude;
}

}  // namespace trierarch
