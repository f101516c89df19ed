// Packed matrices: (out_features, in_features) as blocks of sixteen outputs, each a run over the inputs. A decode step
// streams every block once, front to back. A *gated* matrix is gate over up; its blocks alternate, gate 0, up 0, gate 1,
// up 1, so that the two of an output meet in one panel.
//
// Float32 and bfloat16: a run is word vectors (tile.h reads them so). Int8 and int4: a run is *quads*, the bytes of four
// inputs in each of sixteen words, as the processor's integer dot product wants them; bytes are unsigned, so int8 codes
// have 128 added. Two quads of int4 share a word, the first in the lower halves of its bytes. Each group's codes are
// followed by its sixteen scales, and its offsets if any, as float16: one stream a block, for the memory's sake.
#pragma once

#include "abi.h"
#include "element.h"
#include "team.h"

namespace trierarch {

enum class Format : int64_t { kFloat32, kBFloat16, kInt8, kInt4 };

constexpr int64_t kGroup = 32;  // inputs that share a scale

constexpr int64_t blocks_of(int64_t columns) { return (columns + kLanes - 1) / kLanes; }

struct Packed {
  Format format;
  const uint8_t* blocks;
  const float* bias;        // (columns) or null; of a gated matrix, (2 columns)
  int64_t columns;          // output features; of a gated matrix, of one half
  int64_t in_features;

  bool is_quantised() const { return format == Format::kInt8 || format == Format::kInt4; }
  int64_t num_groups() const { return in_features / kGroup; }
  int64_t block_bytes() const { return block_bytes(format, in_features); }

  static constexpr int64_t block_bytes(Format format, int64_t in_features) {
    constexpr int64_t kTable = kLanes * sizeof(uint16_t);
    switch (format) {
      case Format::kFloat32: return in_features * kLanes * 4;
      case Format::kBFloat16: return in_features * kLanes * 2;
      case Format::kInt8: return in_features / kGroup * (kGroup * kLanes + kTable);
      default: return in_features / kGroup * (kGroup * kLanes / 2 + 2 * kTable);
    }
  }
};

// `columns` of one half where it is gated.
inline Packed packed(const TrierarchLinear& linear, int64_t columns, int64_t in_features) {
  return {Format{linear.format}, static_cast<const uint8_t*>(linear.weight), linear.bias, columns, in_features};
}

// Sixteen rows of `depth` words, transposed to depth vectors of sixteen; a null row is zero.
TRIERARCH_INLINE void pack_block(const uint32_t* const (&rows)[kLanes], int64_t depth, uint32_t* packed) {
  int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    Words words[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) words[i] = rows[i] ? load<Words>(rows[i] + d) : Words{};
    transpose(words);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(packed + (d + i) * kLanes, words[i]);
  }
  for (; d < depth; ++d)
    for (int i = 0; i < kLanes; ++i) packed[d * kLanes + i] = rows[i] ? rows[i][d] : 0;
}

// Eight stored int4 codes, input i at bit 4 i, to a word of two quads.
inline uint32_t pair_quads(uint32_t stored) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) word |= (stored >> 4 * i & 15u) << (i % 4 * 8 + i / 4 * 4);
  return word;
}

class Packer {
 public:
  Packer(const TrierarchMatrix& matrix, void* target)
      : format_{matrix.format},
        halves_(matrix.is_gated ? 2 : 1),
        columns_(matrix.out_features / halves_),
        in_features_(matrix.in_features),
        source_(matrix),
        target_(static_cast<uint8_t*>(target)) {}

  int64_t num_bytes() const { return halves_ * blocks_of(columns_) * Packed::block_bytes(format_, in_features_); }

  void run(Team& team) const {
    team.share(halves_ * blocks_of(columns_), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack(i % halves_, i / halves_, target_ + i * block_bytes());
    });
  }

 private:
  void pack(int64_t half, int64_t block, uint8_t* target) const {
    if (format_ == Format::kInt8 || format_ == Format::kInt4) return pack_quantised(half, block, target);
    const int64_t depth = block_bytes() / kLanes / 4;
    const uint32_t* rows[kLanes];
    gather(source_.codes, depth, half, block, rows);
    pack_block(rows, depth, reinterpret_cast<uint32_t*>(target));
  }

  void pack_quantised(int64_t half, int64_t block, uint8_t* target) const {
    const bool is_int8 = format_ == Format::kInt8;
    const int64_t num_groups = in_features_ / kGroup, num_words = is_int8 ? kGroup / 4 : kGroup / 8;  // of a row's group
    const uint32_t* codes[kLanes];
    const uint16_t *scales[kLanes], *offsets[kLanes];
    gather(source_.codes, num_groups * num_words, half, block, codes);
    gather(source_.scales, num_groups, half, block, scales);
    if (!is_int8) gather(source_.offsets, num_groups, half, block, offsets);
    for (int64_t group = 0; group < num_groups; ++group) {
      for (int64_t k = 0; k < num_words; ++k) {
        uint32_t words[kLanes] = {};
        for (int j = 0; j < kLanes; ++j) {
          if (codes[j] == nullptr) continue;
          const uint32_t word = codes[j][group * num_words + k];
          words[j] = is_int8 ? word ^ 0x80808080u : pair_quads(word);
        }
        target = append(words, target);
      }
      target = append_table(scales, group, target);
      if (!is_int8) target = append_table(offsets, group, target);
    }
  }

  static uint8_t* append_table(const uint16_t* const (&rows)[kLanes], int64_t group, uint8_t* target) {
    uint16_t table[kLanes];
    for (int j = 0; j < kLanes; ++j) table[j] = rows[j] ? rows[j][group] : 0;
    return append(table, target);
  }

  template <class Values>
  static uint8_t* append(const Values& values, uint8_t* target) {
    std::memcpy(target, values, sizeof values);
    return target + sizeof values;
  }

  // The sixteen rows of a block of one half; null beyond the last.
  template <class Value>
  void gather(const void* source, int64_t row_size, int64_t half, int64_t block, const Value* (&rows)[kLanes]) const {
    for (int j = 0; j < kLanes; ++j) {
      const int64_t column = block * kLanes + j;
      const auto* first = static_cast<const Value*>(source);
      rows[j] = column < columns_ ? first + (half * columns_ + column) * row_size : nullptr;
    }
  }

  int64_t block_bytes() const { return Packed::block_bytes(format_, in_features_); }

  const Format format_;
  const int64_t halves_, columns_, in_features_;
  const TrierarchMatrix source_;
  uint8_t* const target_;
};

}  // namespace trierarch
