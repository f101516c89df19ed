// Quantised codes and their tables in registers.
#pragma once

#include "pack.h"

namespace trierarch {

constexpr int64_t kQuad = 4;  // inputs in a word of bytes
constexpr int64_t kGroupQuads = kGroup / kQuad;

// Of each: bytes of a group with its tables, quads as unsigned bytes, what was added to the codes to make them so.
struct Int8 {
  static constexpr bool kHasOffsets = false;
  static constexpr int32_t kBias = 128;
  static constexpr int64_t kCodeBytes = kGroup * kLanes, kGroupBytes = kCodeBytes + kLanes * 2;
  static constexpr int64_t kRunQuads = 1;  // quads in a run of sixteen words

  // A register's share of a run, `part` of kParts.
  static TRIERARCH_INLINE void load_run(const uint8_t* group, int64_t run, int part, WordRegister (&quads)[kRunQuads]) {
    quads[0] = load<WordRegister>(group + (run * kLanes + part * kRegisterLanes) * kQuad);
  }
};

struct Int4 {
  static constexpr bool kHasOffsets = true;
  static constexpr int32_t kBias = 0;
  static constexpr int64_t kCodeBytes = kGroup * kLanes / 2, kGroupBytes = kCodeBytes + kLanes * 4;
  static constexpr int64_t kRunQuads = 2;

  static TRIERARCH_INLINE void load_run(const uint8_t* group, int64_t run, int part, WordRegister (&quads)[kRunQuads]) {
    const WordRegister words = load<WordRegister>(group + (run * kLanes + part * kRegisterLanes) * kQuad);
    quads[0] = words & 0x0f0f0f0fu;
    quads[1] = words >> 4 & 0x0f0f0f0fu;
  }
};

// A register of float16.
TRIERARCH_INLINE FloatRegister load_halves(const uint8_t* source) {
#if defined(__AVX512F__)
  return reinterpret_cast<FloatRegister>(_mm512_cvtph_ps(load<__m256i>(source)));
#elif defined(__F16C__) && defined(__AVX2__)
  return reinterpret_cast<FloatRegister>(_mm256_cvtph_ps(load<__m128i>(source)));
#else
  using HalfRegister = uint16_t __attribute__((vector_size(2 * kRegisterLanes)));
  // Exponent and mantissa stand right once shifted; the exponents' biases differ by 112.
  const WordRegister bits = __builtin_convertvector(load<HalfRegister>(source), WordRegister);
  const FloatRegister magnitude = reinterpret_cast<FloatRegister>((bits & 0x7fffu) << 13) * 0x1p112f;
  return reinterpret_cast<FloatRegister>(reinterpret_cast<WordRegister>(magnitude) | (bits & 0x8000u) << 16);
#endif
}

// Tables of one group, of some neighbouring blocks.
template <class Codes, int Blocks>
struct GroupTables {
  FloatRegister scale[kColumns<Blocks>], offset[kColumns<Blocks>];

  // group: of the first block.
  TRIERARCH_INLINE GroupTables(const uint8_t* group, int64_t block_stride) {
    unrolled<kColumns<Blocks>>([&](auto c) TRIERARCH_LAMBDA_INLINE {
      const uint8_t* tables = group + c / kParts * block_stride + Codes::kCodeBytes + c % kParts * kRegisterLanes * 2;
      scale[c] = load_halves(tables);
      offset[c] = Codes::kHasOffsets ? load_halves(tables + kLanes * 2) : FloatRegister{};
    });
  }
};

// One group of one block's register, to be added to what came before.
template <class Codes>
TRIERARCH_INLINE void add_group(FloatRegister& total, FloatRegister part, FloatRegister scale, FloatRegister offset,
                                float sum) {
  total += part * scale;
  if constexpr (Codes::kHasOffsets) total += offset * sum;
}

// Row `column` of a quantised matrix, times `factor`.
template <class Codes>
void copy_quantised_row(const Packed& weight, int64_t column, float factor, float* target) {
  const int64_t block = column / kLanes, lane = column % kRegisterLanes;
  const int part = static_cast<int>(column % kLanes / kRegisterLanes);
  const uint8_t* codes = weight.blocks + block * weight.block_bytes();
  for (int64_t group = 0; group < weight.num_groups(); ++group, codes += Codes::kGroupBytes) {
    const GroupTables<Codes, 1> tables(codes, 0);
    for (int64_t run = 0; run < kGroupQuads / Codes::kRunQuads; ++run) {
      WordRegister quads[Codes::kRunQuads];
      Codes::load_run(codes, run, part, quads);
      for (int64_t i = 0; i < Codes::kRunQuads * kQuad; ++i) {
        const int32_t code = static_cast<int32_t>(quads[i / kQuad][lane] >> i % kQuad * 8 & 255u) - Codes::kBias;
        const float value = tables.scale[part][lane] * static_cast<float>(code) + tables.offset[part][lane];
        target[group * kGroup + run * Codes::kRunQuads * kQuad + i] = value * factor;
      }
    }
  }
}

}  // namespace trierarch
