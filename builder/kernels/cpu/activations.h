// Activations: rows of T, and what quantised matrices need of them, worked out once a matrix.
//
// With bfloat16 weights, activations become 16-bit integers with a scale for each row and group, 15 bits and a sign where
// bfloat16 keeps 8; the products of a group are summed exactly. Where the processor has a dot product of bytes they are
// two bytes, 256 * high + low. With float32 weights codes become float32, and activations stay as they are.
#pragma once

#include <type_traits>

#include "codes.h"
#include "scratch.h"

namespace trierarch {

template <class T>
constexpr bool kIsInteger = std::is_same_v<T, BFloat16>;

// Whether they become bytes.
template <class T>
#if defined(__AVX512VNNI__)
constexpr bool kHasByteProduct = kIsInteger<T>;
#else
constexpr bool kHasByteProduct = false;
#endif

// Of a step's rows, or of some of them.
template <class T>
struct Activations {
  const Operand<T>* rows;  // (num_rows, width)
  int64_t num_rows, width;
  // (num_rows, width / kGroup): each group's sum, and where kIsInteger its scale and its integers' sum
  float *sums, *scales;
  int32_t* integer_sums;
  // (num_rows, width) where kIsInteger: bytes where kHasByteProduct, else pairs, each input beside the next but one
  int8_t *low, *high;
  int16_t* pairs;

  int64_t num_groups() const { return width / kGroup; }

  Activations from(int64_t row) const {
    const int64_t table = row * num_groups(), place = row * width;
    return {rows + place,         num_rows - row, width,        sums + table, scales + table,
            integer_sums + table, low + place,    high + place, pairs + place};
  }

  Activations first(int64_t count) const {
    Activations result = *this;
    result.num_rows = count;
    return result;
  }
};

// Room for what goes with rows of activations.
class ActivationScratch {
 public:
  void reserve(int64_t num_rows, int64_t width) {
    const int64_t table = num_rows * (width / kGroup);
    sums_.reserve(table);
    scales_.reserve(table);
    integer_sums_.reserve(table);
    integers_.reserve(num_rows * width);
  }

  template <class T>
  Activations<T> with(const Operand<T>* rows, int64_t num_rows, int64_t width) {
    auto* bytes = reinterpret_cast<int8_t*>(integers_.begin());
    return {rows, num_rows, width, sums_.begin(), scales_.begin(), integer_sums_.begin(),
            bytes, bytes + num_rows * width, integers_.begin()};
  }

 private:
  Scratch<float> sums_, scales_;
  Scratch<int32_t> integer_sums_;
  Scratch<int16_t> integers_;
};

TRIERARCH_INLINE Floats load_elements(const float* source) { return load<Floats>(source); }
TRIERARCH_INLINE Floats load_elements(const BFloat16* source) {
  return as_floats(__builtin_convertvector(load<Halves>(source), Words) << 16);
}

// A register's even bytes meet its first pair of inputs, its odd bytes the second.
TRIERARCH_INLINE void store_pairs(int16_t* target, Ints integers) {
  using Shorts = int16_t __attribute__((vector_size(2 * kLanes)));
  const Shorts shorts = __builtin_convertvector(integers, Shorts);
  store(target, __builtin_shufflevector(shorts, shorts, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
}

// One group of one row.
template <class T>
TRIERARCH_INLINE void prepare_group(const Activations<T>& x, int64_t row, int64_t group) {
  const Operand<T>* source = x.rows + row * x.width + group * kGroup;
  const Floats values[2] = {load_elements(source), load_elements(source + kLanes)};
  const int64_t table = row * x.num_groups() + group;
  x.sums[table] = sum(values[0] + values[1]);
  if constexpr (kIsInteger<T>) {
    constexpr float kLargest = 127 * 256 + 127;
    const float most = largest(maximum(magnitude(values[0]), magnitude(values[1])));
    const float inverse = most > 0 ? kLargest / most : 0.0f;
    Ints total = {};
    for (int i = 0; i < 2; ++i) {
      const Floats rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
      const Ints integers = reinterpret_cast<Ints>(values[i] * inverse + rounder) - reinterpret_cast<Ints>(rounder);
      total += integers;
      const int64_t place = row * x.width + group * kGroup + i * kLanes;
      if constexpr (kHasByteProduct<T>) {
        const Ints low = integers << 24 >> 24, high = (integers - low) >> 8;
        store_bytes(x.low + place, low);
        store_bytes(x.high + place, high);
      } else {
        store_pairs(x.pairs + place, integers);
      }
    }
    x.scales[table] = most / kLargest;
    x.integer_sums[table] = sum_of(total);
  }
}

// To be called by all of a team, before a quantised matrix is multiplied with `x`.
template <class T>
void prepare(Team& team, const Activations<T>& x) {
  team.share(x.num_rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t group = 0; group < x.num_groups(); ++group) prepare_group(x, row, group);
  });
}

}  // namespace trierarch
