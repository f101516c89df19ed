// Packed matrices: (out_features, in_features) as blocks of sixteen outputs, each a run over the inputs. A decode step
// streams every block once, front to back. A *gated* matrix is gate over up; its blocks alternate, gate 0, up 0, gate 1,
// up 1, so that the two of an output meet in one panel.
//
// Float32 and bfloat16: a run is word vectors (tile.h reads them so). Int8: (in_features, 16) bytes. Int4: (in_features /
// 8, 16) words; of the eight inputs in a word, input 2 s + h stands at bit 4 s + 16 h, so that a shift by 4 s brings a
// pair to where two 16-bit lanes begin. Scales, and offsets if any, stand behind all codes: (blocks, groups, 16) float16.
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
  const uint8_t* codes;
  const uint16_t* scales;   // of quantised formats
  const uint16_t* offsets;  // of int4
  const float* bias;        // (columns) or null; of a gated matrix, (2 columns)
  int64_t columns;          // output features; of a gated matrix, of one half
  int64_t in_features;

  bool is_quantised() const { return format == Format::kInt8 || format == Format::kInt4; }
  int64_t num_groups() const { return in_features / kGroup; }
  int64_t block_bytes() const { return code_bytes(format, in_features); }

  static constexpr int64_t code_bytes(Format format, int64_t in_features) {
    switch (format) {
      case Format::kFloat32: return in_features * kLanes * 4;
      case Format::kBFloat16: return in_features * kLanes * 2;
      case Format::kInt8: return in_features * kLanes;
      default: return in_features * kLanes / 2;
    }
  }
};

// Where the pieces of a packed matrix lie.
struct PackedLayout {
  int64_t scales, offsets, end;  // bytes from the first code

  PackedLayout(Format format, int64_t num_blocks, int64_t in_features) {
    const int64_t table = num_blocks * (in_features / kGroup) * kLanes * sizeof(uint16_t);
    scales = num_blocks * Packed::code_bytes(format, in_features);  // a multiple of a cache line, and so the tables
    offsets = scales + (format == Format::kInt8 || format == Format::kInt4 ? table : 0);
    end = offsets + (format == Format::kInt4 ? table : 0);
  }
};

// `columns` of one half where `is_gated`.
inline Packed packed(const TrierarchLinear& linear, int64_t columns, int64_t in_features, bool is_gated = false) {
  const Format format{linear.format};
  const PackedLayout layout(format, (is_gated ? 2 : 1) * blocks_of(columns), in_features);
  const auto* codes = static_cast<const uint8_t*>(linear.weight);
  return {format,
          codes,
          reinterpret_cast<const uint16_t*>(codes + layout.scales),
          reinterpret_cast<const uint16_t*>(codes + layout.offsets),
          linear.bias,
          columns,
          in_features};
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

// (16, count) of some type to (count, 16).
template <class Value>
inline void transpose_values(const Value* const (&rows)[kLanes], int64_t count, Value* target) {
  for (int64_t k = 0; k < count; ++k)
    for (int i = 0; i < kLanes; ++i) target[k * kLanes + i] = rows[i] ? rows[i][k] : Value{};
}

// Four bytes of stored int4 codes, input 2 j in the low half of byte j, to a word.
inline uint32_t weave_nibbles(const uint8_t* bytes) {
  uint32_t word = 0;
  for (int s = 0; s < 4; ++s) word |= uint32_t{bytes[s]} % 16 << 4 * s | uint32_t{bytes[s]} / 16 << (16 + 4 * s);
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
        layout_(format_, halves_ * blocks_of(columns_), in_features_),
        target_(static_cast<uint8_t*>(target)) {}

  int64_t num_bytes() const { return layout_.end; }

  void run(Team& team) const {
    team.share(halves_ * blocks_of(columns_), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack(i);
    });
  }

 private:
  // Block `i` of the packed matrix.
  void pack(int64_t i) const {
    const int64_t half = i % halves_, block = i / halves_, block_bytes = Packed::code_bytes(format_, in_features_);
    uint8_t* codes = target_ + i * block_bytes;
    const int64_t row_bytes = block_bytes / kLanes;
    const uint8_t* rows[kLanes];
    gather(static_cast<const uint8_t*>(source_.codes), row_bytes, half, block, rows);
    if (format_ == Format::kInt8) {
      transpose_values(rows, in_features_, codes);
    } else if (format_ == Format::kInt4) {
      for (int64_t k = 0; k < row_bytes / 4; ++k)
        for (int j = 0; j < kLanes; ++j)
          reinterpret_cast<uint32_t*>(codes)[k * kLanes + j] = rows[j] ? weave_nibbles(rows[j] + 4 * k) : 0;
    } else {
      const uint32_t* words[kLanes];
      for (int j = 0; j < kLanes; ++j) words[j] = reinterpret_cast<const uint32_t*>(rows[j]);
      return pack_block(words, row_bytes / 4, reinterpret_cast<uint32_t*>(codes));
    }
    pack_table(source_.scales, layout_.scales, half, block, i);
    if (format_ == Format::kInt4) pack_table(source_.offsets, layout_.offsets, half, block, i);
  }

  void pack_table(const void* source, int64_t place, int64_t half, int64_t block, int64_t i) const {
    const int64_t num_groups = in_features_ / kGroup;
    const uint16_t* rows[kLanes];
    gather(static_cast<const uint16_t*>(source), num_groups, half, block, rows);
    transpose_values(rows, num_groups, reinterpret_cast<uint16_t*>(target_ + place) + i * num_groups * kLanes);
  }

  // The sixteen rows of a block of one half; null beyond the last.
  template <class Value>
  void gather(const Value* source, int64_t row_size, int64_t half, int64_t block, const Value* (&rows)[kLanes]) const {
    for (int j = 0; j < kLanes; ++j) {
      const int64_t column = block * kLanes + j;
      rows[j] = column < columns_ ? source + (half * columns_ + column) * row_size : nullptr;
    }
  }

  const Format format_;
  const int64_t halves_, columns_, in_features_;
  const TrierarchMatrix source_;
  const PackedLayout layout_;
  uint8_t* const target_;
};

}  // namespace trierarch
