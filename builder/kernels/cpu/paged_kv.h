// PagedKv: one layer's keys and values in their blocks; attention reads them where they lie.
//
// kv_arrays.py says where a block's run of one head begins. Inside it sixteen tokens at a time are a *tile*, laid out as
// tile.h wants a right operand, so that nothing is packed again at each step: its keys are words over head_dim with a lane
// for each token, its values words over tokens with a lane for each element of sixteen.
#pragma once

#include <type_traits>

#include "abi.h"
#include "element.h"

namespace trierarch {

constexpr int64_t kTileTokens = kLanes;  // the block size is a multiple of it

inline const int64_t* block_table(const TrierarchStep& step, int64_t sequence) {
  return step.block_ids + step.table_offsets[sequence];
}

// Sixteen words of T from as many elements as they hold; codes become T exactly.
template <class T>
TRIERARCH_INLINE Words load_words(const T* source) {
  return load<Words>(source);
}

template <class T>
TRIERARCH_INLINE Words load_words(const int8_t* source);

template <>
TRIERARCH_INLINE Words load_words<float>(const int8_t* source) {
  using Codes = int8_t __attribute__((vector_size(kLanes)));
  return as_words(__builtin_convertvector(__builtin_convertvector(load<Codes>(source), Ints), Floats));
}

template <>
TRIERARCH_INLINE Words load_words<BFloat16>(const int8_t* source) {
  const Words pairs = __builtin_convertvector(load<Halves>(source), Words);
  const Ints first = reinterpret_cast<Ints>(pairs << 24) >> 24, second = reinterpret_cast<Ints>(pairs << 16) >> 24;
  // A bfloat16 is the upper half of a float32.
  return as_words(__builtin_convertvector(first, Floats)) >> 16 |
         (as_words(__builtin_convertvector(second, Floats)) & 0xffff0000u);
}

// T is what attention computes in, K what is stored: T, or int8_t with a scale for each token and head.
template <class T, class K>
class PagedKv {
 public:
  static constexpr bool kHasScales = std::is_same_v<K, int8_t>;

  struct Tile {
    K *keys, *values;
    float *key_scales, *value_scales;  // (kTileTokens) where kHasScales
  };

  PagedKv(const TrierarchStep& step, int64_t layer, int64_t num_heads, int64_t head_dim)
      : num_heads_(num_heads), block_size_(step.block_size), head_dim_(head_dim),
        num_tokens_(step.num_blocks * num_heads * step.block_size),
        keys_(static_cast<K*>(step.kv) + 2 * layer * num_tokens_ * head_dim),
        scales_(kHasScales ? step.kv_scales + 2 * layer * num_tokens_ : nullptr) {}

  // Of the tokens from `position` on, a multiple of kTileTokens.
  Tile tile(const int64_t* table, int64_t head, int64_t position) const {
    const int64_t block = table[position / block_size_], slot = position % block_size_;
    const int64_t first = (block * num_heads_ + head) * block_size_ + slot;
    K* keys = keys_ + first * head_dim_;
    float* scales = kHasScales ? scales_ + first : nullptr;
    return {keys, keys + num_tokens_ * head_dim_, scales, kHasScales ? scales + num_tokens_ : nullptr};
  }

  // Store a token's key and value: (head_dim) each.
  void put(const int64_t* table, int64_t head, int64_t position, const float* key, const float* value) const {
    const int64_t token = position % kTileTokens;
    const Tile target = tile(table, head, position - token);
    float key_scale = 1, value_scale = 1;
    if constexpr (kHasScales) {
      target.key_scales[token] = key_scale = scale_of(key);
      target.value_scales[token] = value_scale = scale_of(value);
    }
    for (int64_t d = 0; d < head_dim_; d += kLanes) {
      K keys[kLanes], values[kLanes];
      narrow(load<Floats>(key + d), key_scale, keys);
      narrow(load<Floats>(value + d), value_scale, values);
      for (int64_t i = 0; i < kLanes; ++i) {
        target.keys[key_place(token, d + i)] = keys[i];
        target.values[value_place(token, d + i)] = values[i];
      }
    }
  }

 private:
  static constexpr int64_t kPer = kPerWord<T>;

  static int64_t key_place(int64_t token, int64_t d) { return (d / kPer * kTileTokens + token) * kPer + d % kPer; }

  static int64_t value_place(int64_t token, int64_t d) {
    return ((d / kLanes * kTileTokens + token / kPer * kPer) * kLanes) + d % kLanes * kPer + token % kPer;
  }

  // So that the largest is 127. What is not finite stays so: the scale of a row that has it is NaN.
  float scale_of(const float* row) const {
    Floats most = {}, poison = {};
    for (int64_t d = 0; d < head_dim_; d += kLanes) {
      const Floats value = load<Floats>(row + d);
      most = maximum(most, magnitude(value));
      poison += value * 0.0f;
    }
    return largest(most) / 127.0f + sum(poison);
  }

  template <class Target>
  static void narrow(Floats value, float, Target* target) {
    store_elements(target, value);
  }

  static void narrow(Floats value, float scale, int8_t* target) {
    const Floats rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Floats quotient = scale > 0 ? value / scale : Floats{};
    store_bytes(target, reinterpret_cast<Ints>(quotient + rounder) - reinterpret_cast<Ints>(rounder));
  }

  const int64_t num_heads_, block_size_, head_dim_;
  const int64_t num_tokens_;  // of a layer's keys, all heads together
  K* const keys_;
  float* const scales_;
};

}  // namespace trierarch
