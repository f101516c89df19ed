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

  static TRIERARCH_INLINE void load_run(const uint8_t* group, int64_t run, Words (&quads)[kRunQuads]) {
    quads[0] = load<Words>(group + run * kLanes * kQuad);
  }
};

struct Int4 {
  static constexpr bool kHasOffsets = true;
  static constexpr int32_t kBias = 0;
  static constexpr int64_t kCodeBytes = kGroup * kLanes / 2, kGroupBytes = kCodeBytes + kLanes * 4;
  static constexpr int64_t kRunQuads = 2;

  static TRIERARCH_INLINE void load_run(const uint8_t* group, int64_t run, Words (&quads)[kRunQuads]) {
    const Words words = load<Words>(group + run * kLanes * kQuad);
    quads[0] = words & 0x0f0f0f0fu;
    quads[1] = words >> 4 & 0x0f0f0f0fu;
  }
};

// Sixteen float16.
TRIERARCH_INLINE Floats load_halves(const uint8_t* source) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(load<__m256i>(source)));
#else
  // Exponent and mantissa stand right once shifted; the exponents' biases differ by 112.
  const Words bits = __builtin_convertvector(load<Halves>(source), Words);
  const Floats magnitude = as_floats((bits & 0x7fffu) << 13) * 0x1p112f;
  return as_floats(as_words(magnitude) | (bits & 0x8000u) << 16);
#endif
}

// Tables of one group, of some neighbouring blocks.
template <class Codes, int Blocks>
struct GroupTables {
  Floats scale[Blocks], offset[Blocks];

  // group: of the first block.
  TRIERARCH_INLINE GroupTables(const uint8_t* group, int64_t block_stride) {
#pragma GCC unroll 4
    for (int n = 0; n < Blocks; ++n) {
      const uint8_t* tables = group + n * block_stride + Codes::kCodeBytes;
      scale[n] = load_halves(tables);
      offset[n] = Codes::kHasOffsets ? load_halves(tables + kLanes * 2) : Floats{};
    }
  }
};

// One group of one block, to be added to what came before.
template <class Codes>
TRIERARCH_INLINE void add_group(Floats& total, Floats part, Floats scale, Floats offset, float sum) {
  total += part * scale;
  if constexpr (Codes::kHasOffsets) total += offset * sum;
}

// Row `column` of a quantised matrix, times `factor`.
template <class Codes>
void copy_quantised_row(const Packed& weight, int64_t column, float factor, float* target) {
  const int64_t block = column / kLanes, lane = column % kLanes;
  const uint8_t* codes = weight.blocks + block * weight.block_bytes();
  for (int64_t group = 0; group < weight.num_groups(); ++group, codes += Codes::kGroupBytes) {
    const GroupTables<Codes, 1> tables(codes, 0);
    for (int64_t run = 0; run < kGroupQuads / Codes::kRunQuads; ++run) {
      Words quads[Codes::kRunQuads];
      Codes::load_run(codes, run, quads);
      for (int64_t i = 0; i < Codes::kRunQuads * kQuad; ++i) {
        const int32_t code = static_cast<int32_t>(quads[i / kQuad][lane] >> i % kQuad * 8 & 255u) - Codes::kBias;
        const float value = tables.scale[0][lane] * static_cast<float>(code) + tables.offset[0][lane];
        target[group * kGroup + run * Codes::kRunQuads * kQuad + i] = value * factor;
      }
    }
  }
}

}  // namespace trierarch
