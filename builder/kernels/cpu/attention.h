// Attention over paged keys and values, read in place through the block table: no gathered copy, no mask in memory.
//
// The heads that share a KV head, times the queries of a tile, are the rows of two matrix products for each chunk of
// keys, as in FlashAttention (Dao, 2023). Products of the operands' type are summed in float32.
#pragma once

#include "attention_plan.h"
#include "pack.h"
#include "paged_kv.h"
#include "partial.h"
#include "scratch.h"
#include "tile.h"

namespace trierarch {

struct AttentionShape {
  int64_t num_heads, num_kv_heads, head_dim;
  float scale, softcap;  // softcap 0: none
  int64_t window;        // 0: all
  int64_t group() const { return num_heads / num_kv_heads; }
};

// One thread's work space.
template <class T>
class AttentionScratch {
 public:
  explicit AttentionScratch(const AttentionShape& shape)
      : rows_(std::max(kQueryRows, shape.group())),
        queries(rows_ * shape.head_dim),
        weights(rows_ * kChunk),
        keys(kChunk * shape.head_dim / kPerWord<T>),
        values(kChunk * shape.head_dim / kPerWord<T>),
        scores(rows_ * kChunk),
        scale(rows_),
        sums_(2 * rows_ * (shape.head_dim + 2)) {}

  // 0 is a segment's, 1 all segments'.
  Partial partial(int which, int64_t head_dim) {
    float* base = sums_.begin() + which * rows_ * (head_dim + 2);
    return {base + rows_ * head_dim, base + rows_ * (head_dim + 1), base, head_dim};
  }

 private:
  const int64_t rows_;

 public:
  Scratch<T> queries, weights;
  Scratch<uint32_t> keys, values;
  Scratch<float> scores, scale;

 private:
  Scratch<float> sums_;
};

template <class T>
class Attention {
 public:
  // queries and result: (num_tokens, num_heads, head_dim). partials: room for plan.num_partial_rows rows.
  Attention(const AttentionShape& shape, const TrierarchStep& step, const PagedKv<T>& kv, const int64_t* first_rows,
            const T* queries, T* result, const Partial& partials)
      : shape_(shape), step_(step), kv_(kv), first_rows_(first_rows), queries_(queries), result_(result),
        partials_(partials) {}

  void run(Team& team, const AttentionPlan& plan, AttentionScratch<T>& scratch) const {
    team.share(plan.items.size(), 1, [&](int64_t i, int64_t) { attend(plan.items[i], scratch); });
    if (plan.merges.empty()) return;
    team.share(plan.merges.size(), 1, [&](int64_t i, int64_t) { merge(plan.merges[i]); });
  }

 private:
  void attend(const AttentionItem& item, AttentionScratch<T>& scratch) const {
    const int64_t rows = item.num_queries * shape_.group();
    copy_queries(item, scratch.queries.begin());
    if (item.partial >= 0) {
      const Partial target = partials_.from(item.partial);
      return attend_segment(item, item.first_segment, rows, target, scratch);
    }
    const Partial segment = scratch.partial(0, shape_.head_dim), all = scratch.partial(1, shape_.head_dim);
    attend_segment(item, item.first_segment, rows, all, scratch);
    for (int64_t s = item.first_segment + 1; s < item.end_segment; ++s) {
      attend_segment(item, s, rows, segment, scratch);
      all.add(segment, rows);
    }
    finish(item.sequence, item.kv_head, item.first_query, rows, all);
  }

  void merge(const MergeItem& item) const {
    const int64_t rows = item.num_queries * shape_.group();
    const Partial all = partials_.from(item.partial);
    for (int64_t i = 1; i < item.num_partials; ++i) all.add(partials_.from(item.partial + i * rows), rows);
    finish(item.sequence, item.kv_head, 0, rows, all);
  }

  void attend_segment(const AttentionItem& item, int64_t segment, int64_t rows, const Partial& sums,
                      AttentionScratch<T>& scratch) const {
    const int64_t position = step_.starts[item.sequence] + item.first_query;
    const int64_t end_key = position + item.num_queries;
    const int64_t first_key = first_visible(position);
    sums.clear(rows);
    const int64_t end = std::min(end_key, (segment + 1) * kSegment);
    for (int64_t chunk = std::max(segment * kSegment, first_key / kChunk * kChunk); chunk < end; chunk += kChunk) {
      const int64_t num_keys = std::min(kChunk, end - chunk), num_blocks = blocks_of(num_keys);
      const T* rows_of_keys[kChunk] = {};
      kv_.keys(block_table(step_, item.sequence), item.kv_head, chunk, num_keys, first_key, rows_of_keys);
      prefetch(rows_of_keys, num_keys, kv_.to_value());
      pack_keys(rows_of_keys, num_blocks, scratch.keys.begin());
      prefetch_keys(item, chunk + kChunk, std::min(end_key, item.end_segment * kSegment));
      score(rows, num_blocks, scratch);
      for (int64_t r = 0; r < rows; ++r) weigh(r, position + r / shape_.group(), chunk, num_blocks, sums, scratch);
      pack_values(rows_of_keys, num_blocks, scratch.values.begin());
      mix(rows, num_blocks, sums, scratch);
    }
  }

  int64_t first_visible(int64_t position) const {
    return shape_.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - shape_.window);
  }

  void copy_queries(const AttentionItem& item, T* rows) const {
    const int64_t size = shape_.group() * shape_.head_dim;
    for (int64_t i = 0; i < item.num_queries; ++i) {
      const int64_t token = first_rows_[item.sequence] + item.first_query + i;
      std::memcpy(rows + i * size, queries_ + (token * shape_.num_kv_heads + item.kv_head) * size, size * sizeof(T));
    }
  }

  void finish(int64_t sequence, int64_t kv_head, int64_t first_query, int64_t rows, const Partial& sums) const {
    const int64_t group = shape_.group();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = first_rows_[sequence] + first_query + r / group;
      sums.finish(r, result_ + (token * shape_.num_heads + kv_head * group + r % group) * shape_.head_dim);
    }
  }

  // Blocks lie anywhere, so the hardware does not see them coming: values come from memory while keys are worked on, and
  // the next keys while values are.
  void prefetch(const T* const* rows, int64_t count, int64_t offset) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < shape_.head_dim; d += kLine)
        if (rows[i] != nullptr) __builtin_prefetch(rows[i] + offset + d);
  }

  void prefetch_keys(const AttentionItem& item, int64_t chunk, int64_t end) const {
    if (chunk >= end) return;
    const T* rows[kChunk];
    const int64_t count = std::min(kChunk, end - chunk);
    kv_.keys(block_table(step_, item.sequence), item.kv_head, chunk, count, 0, rows);
    prefetch(rows, count, 0);
  }

  // Keys that no query of the item sees are null and count as zero: their slots may hold anything, and NaN times zero
  // is NaN.
  void pack_keys(const T* const (&keys)[kChunk], int64_t num_blocks, uint32_t* packed) const {
    const int64_t depth = shape_.head_dim / kPerWord<T>;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const uint32_t* rows[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) rows[i] = reinterpret_cast<const uint32_t*>(keys[block * kLanes + i]);
      pack_block(rows, depth, packed + block * depth * kLanes);
    }
  }

  // Values become a matrix of keys by head_dim: words run over keys, so a pair of keys is woven into one vector.
  void pack_values(const T* const (&keys)[kChunk], int64_t num_blocks, uint32_t* packed) const {
    const int64_t depth = num_blocks * kLanes / kPerWord<T>;
    for (int64_t d = 0; d < depth; ++d) {
      const T* rows[kPerWord<T>];
      for (int i = 0; i < kPerWord<T>; ++i) {
        const T* key = keys[d * kPerWord<T> + i];
        rows[i] = key == nullptr ? nullptr : key + kv_.to_value();
      }
      for (int64_t block = 0; block < shape_.head_dim / kLanes; ++block)
        store(packed + (block * depth + d) * kLanes, weave(rows, block * kLanes));
    }
  }

  static TRIERARCH_INLINE Words weave(const float* const (&rows)[1], int64_t column) {
    return rows[0] ? load<Words>(rows[0] + column) : Words{};
  }

  static TRIERARCH_INLINE Words weave(const BFloat16* const (&rows)[2], int64_t column) {
    const auto widened = [column](const BFloat16* row) __attribute__((always_inline)) {
      return row ? __builtin_convertvector(load<Halves>(row + column), Words) : Words{};
    };
    return widened(rows[0]) | widened(rows[1]) << 16;
  }

  void score(int64_t rows, int64_t num_blocks, AttentionScratch<T>& scratch) const {
    const int64_t depth = shape_.head_dim / kPerWord<T>;
    with_constant<kTileBlocks>(static_cast<int>(num_blocks), [&](auto blocks) {
      over_row_tiles<kTileRows>(rows, [&](int64_t row, auto height) {
        constexpr int kRows = decltype(height)::value, kBlocks = decltype(blocks)::value;
        Floats acc[kRows][kBlocks] = {};
        multiply<T, kRows, kBlocks>(scratch.queries.begin() + row * shape_.head_dim, shape_.head_dim,
                                    scratch.keys.begin(), depth * kLanes, depth, acc);
        for (int m = 0; m < kRows; ++m)
          for (int n = 0; n < kBlocks; ++n) store(scratch.scores.begin() + (row + m) * kChunk + n * kLanes, acc[m][n]);
      });
    });
  }

  // Scores of one row become weights; `sums` takes in their largest and total.
  void weigh(int64_t row, int64_t position, int64_t chunk, int64_t num_blocks, const Partial& sums,
             AttentionScratch<T>& scratch) const {
    static constexpr Ints kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float* scores = scratch.scores.begin() + row * kChunk;
    T* weights = scratch.weights.begin() + row * kChunk;
    const int64_t first = first_visible(position) - chunk, last = position - chunk;
    Floats values[kChunk / kLanes];
    Floats most = splat(kNothing);
    for (int64_t n = 0; n < num_blocks; ++n) {
      Floats value = load<Floats>(scores + n * kLanes) * shape_.scale;
      if (shape_.softcap != 0) value = hyperbolic_tangent(value / shape_.softcap) * shape_.softcap;
      const Ints column = kIota + static_cast<int32_t>(n * kLanes);
      if (last < (n + 1) * kLanes - 1) value = column > static_cast<int32_t>(last) ? splat(kNothing) : value;
      if (first > n * kLanes) value = column < static_cast<int32_t>(first) ? splat(kNothing) : value;
      values[n] = value;
      most = maximum(most, value);
    }
    const float before = sums.largest[row], now = std::fmax(before, largest(most));
    if (now == kNothing) {  // the row sees none of these keys
      scratch.scale[row] = 1;
      std::memset(weights, 0, num_blocks * kLanes * sizeof(T));
      return;
    }
    Floats total = {};
    for (int64_t n = 0; n < num_blocks; ++n) {
      const Floats weight = exponential(values[n] - now);
      total += weight;
      store_elements(weights + n * kLanes, weight);
    }
    scratch.scale[row] = before == now ? 1.0f : std::exp(before - now);
    sums.largest[row] = now;
    sums.total[row] = sums.total[row] * scratch.scale[row] + sum(total);
  }

  // sums.values = sums.values * scale + weights · values.
  void mix(int64_t rows, int64_t num_blocks, const Partial& sums, AttentionScratch<T>& scratch) const {
    const int64_t depth = num_blocks * kLanes / kPerWord<T>, width = shape_.head_dim / kLanes;
    for (int64_t first = 0; first < width; first += kTileBlocks) {
      const int64_t count = std::min<int64_t>(kTileBlocks, width - first);
      with_constant<kTileBlocks>(static_cast<int>(count), [&](auto blocks) {
        over_row_tiles<kTileRows>(rows, [&](int64_t row, auto height) {
          constexpr int kRows = decltype(height)::value, kBlocks = decltype(blocks)::value;
          const auto place = [&](int m, int n) __attribute__((always_inline)) {
            return sums.values + (row + m) * shape_.head_dim + (first + n) * kLanes;
          };
          Floats acc[kRows][kBlocks];
          for (int m = 0; m < kRows; ++m)
            for (int n = 0; n < kBlocks; ++n) acc[m][n] = load<Floats>(place(m, n)) * scratch.scale[row + m];
          multiply<T, kRows, kBlocks>(scratch.weights.begin() + row * kChunk, kChunk,
                                      scratch.values.begin() + first * depth * kLanes, depth * kLanes, depth, acc);
          for (int m = 0; m < kRows; ++m)
            for (int n = 0; n < kBlocks; ++n) store(place(m, n), acc[m][n]);
        });
      });
    }
  }

  const AttentionShape& shape_;
  const TrierarchStep& step_;
  const PagedKv<T> kv_;
  const int64_t* first_rows_;
  const T* queries_;
  T* result_;
  const Partial partials_;
};

}  // namespace trierarch
