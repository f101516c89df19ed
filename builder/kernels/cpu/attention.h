// Attention over paged keys and values, read in place through the block table: no gathered copy, no mask in memory.
//
// The heads that share a KV head, times the queries of a tile, are the rows of two matrix products for each chunk of
// keys, as in FlashAttention (Dao, 2023). Products of the operands' type are summed in float32. Codes become that type,
// exactly; a key's scale multiplies its scores and a value's its weights.
//
// Slots that no query of an item sees may hold anything, and NaN times zero is NaN. A score of theirs stays in its lane
// and is masked there; their values and scales count as zero before they are multiplied.
#pragma once

#include "attention_plan.h"
#include "paged_kv.h"
#include "partial.h"
#include "scratch.h"
#include "team.h"
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
        key_scales(kChunk),
        value_scales(kChunk),
        sums_(2 * rows_ * (shape.head_dim + 2)) {}

  // 0 is a segment's, 1 all segments'.
  Partial partial(int which, int64_t head_dim) {
    float* base = sums_.begin() + which * rows_ * (head_dim + 2);
    return {base + rows_ * head_dim, base + rows_ * (head_dim + 1), base, head_dim};
  }

 private:
  const int64_t rows_;

 public:
  Scratch<Operand<T>> queries, weights;
  Scratch<uint32_t> keys, values;  // tiles that cannot be read as they lie
  Scratch<float> scores, scale, key_scales, value_scales;

 private:
  Scratch<float> sums_;
};

template <class T, class K>
class Attention {
  using Tile = typename PagedKv<T, K>::Tile;
  static constexpr bool kHasScales = PagedKv<T, K>::kHasScales;
  static constexpr int64_t kChunkTiles = kChunk / kTileTokens;

  // Some keys of one head, those at first_seen..end_seen of which some query of the item sees.
  struct Chunk {
    int64_t first_seen, end_seen, num_tiles;
    Tile tiles[kChunkTiles];

    bool sees(int64_t key) const { return first_seen <= key && key < end_seen; }
  };

 public:
  // queries and result: (num_tokens, num_heads, head_dim). partials: room for plan.num_partial_rows rows.
  Attention(const AttentionShape& shape, const TrierarchStep& step, const PagedKv<T, K>& kv, const int64_t* first_rows,
            const Operand<T>* queries, Operand<T>* result, const Partial& partials)
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
      const Chunk keys = chunk_at(item, chunk, first_key - chunk, std::min(kChunk, end - chunk));
      prefetch(keys, &Tile::values, &Tile::value_scales);
      if constexpr (kHasScales) copy_scales(keys, scratch);
      score(rows, keys, scratch);
      prefetch_keys(item, chunk + kChunk, std::min(end_key, item.end_segment * kSegment));
      for (int64_t r = 0; r < rows; ++r) weigh(r, position + r / shape_.group(), chunk, keys.num_tiles, sums, scratch);
      mix(rows, keys, sums, scratch);
    }
  }

  int64_t first_visible(int64_t position) const {
    return shape_.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - shape_.window);
  }

  void copy_queries(const AttentionItem& item, Operand<T>* rows) const {
    const int64_t size = shape_.group() * shape_.head_dim;
    for (int64_t i = 0; i < item.num_queries; ++i) {
      const int64_t token = first_rows_[item.sequence] + item.first_query + i;
      std::memcpy(rows + i * size, queries_ + (token * shape_.num_kv_heads + item.kv_head) * size, size * sizeof(*rows));
    }
  }

  void finish(int64_t sequence, int64_t kv_head, int64_t first_query, int64_t rows, const Partial& sums) const {
    const int64_t group = shape_.group();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = first_rows_[sequence] + first_query + r / group;
      sums.finish(r, result_ + (token * shape_.num_heads + kv_head * group + r % group) * shape_.head_dim);
    }
  }

  Chunk chunk_at(const AttentionItem& item, int64_t position, int64_t first_seen, int64_t end_seen) const {
    Chunk chunk{first_seen, end_seen, (end_seen + kTileTokens - 1) / kTileTokens, {}};
    const int64_t* table = block_table(step_, item.sequence);
    for (int64_t t = 0; t < chunk.num_tiles; ++t)
      chunk.tiles[t] = kv_.tile(table, item.kv_head, position + t * kTileTokens);
    return chunk;
  }

  // Blocks lie anywhere, so the hardware does not see them coming: values come from memory while keys are worked on, and
  // the next keys while values are.
  void prefetch(const Chunk& chunk, K* Tile::*elements, float* Tile::*scales) const {
    constexpr int64_t kLine = 64 / sizeof(K);
    for (int64_t t = 0; t < chunk.num_tiles; ++t) {
      const K* first = chunk.tiles[t].*elements;
      for (int64_t i = 0; i < kTileTokens * shape_.head_dim; i += kLine) __builtin_prefetch(first + i);
      if constexpr (kHasScales) __builtin_prefetch(chunk.tiles[t].*scales);
    }
  }

  void prefetch_keys(const AttentionItem& item, int64_t position, int64_t end) const {
    if (position >= end) return;
    prefetch(chunk_at(item, position, 0, std::min(kChunk, end - position)), &Tile::keys, &Tile::key_scales);
  }

  // The chunk's scales, zero for what is not seen.
  void copy_scales(const Chunk& chunk, AttentionScratch<T>& scratch) const {
    for (int64_t i = 0; i < chunk.num_tiles * kTileTokens; ++i) {
      const Tile& tile = chunk.tiles[i / kTileTokens];
      scratch.key_scales[i] = chunk.sees(i) ? tile.key_scales[i % kTileTokens] : 0;
      scratch.value_scales[i] = chunk.sees(i) ? tile.value_scales[i % kTileTokens] : 0;
    }
  }

  // A tile's keys as words of T.
  const uint32_t* keys_of(const Tile& tile, uint32_t* room) const {
    if constexpr (!kHasScales) return reinterpret_cast<const uint32_t*>(tile.keys);
    const int64_t size = kTileTokens * shape_.head_dim;
    for (int64_t i = 0; i < size; i += kLanes * kPerWord<T>) store(room + i / kPerWord<T>, load_words<T>(tile.keys + i));
    return room;
  }

  // Likewise its values, zero for what is not seen.
  const uint32_t* values_of(const Chunk& chunk, int64_t t, uint32_t* room) const {
    constexpr int64_t kDepth = kTileTokens / kPerWord<T>;
    constexpr uint32_t kElement = kPerWord<T> == 1 ? ~0u : 0xffffu;
    const K* values = chunk.tiles[t].values;
    const int64_t first = t * kTileTokens;
    if (!kHasScales && chunk.first_seen <= first && first + kTileTokens <= chunk.end_seen)
      return reinterpret_cast<const uint32_t*>(values);
    uint32_t masks[kDepth] = {};
    for (int64_t i = 0; i < kTileTokens; ++i)
      if (chunk.sees(first + i)) masks[i / kPerWord<T>] |= kElement << i % kPerWord<T> * 16;
    for (int64_t i = 0; i < shape_.head_dim / kLanes * kDepth; ++i)
      store(room + i * kLanes, load_words<T>(values + i * kLanes * kPerWord<T>) & masks[i % kDepth]);
    return room;
  }

  void score(int64_t rows, const Chunk& chunk, AttentionScratch<T>& scratch) const {
    const int64_t depth = shape_.head_dim / kPerWord<T>;
    const uint32_t* keys[kChunkTiles];
    for (int64_t t = 0; t < chunk.num_tiles; ++t)
      keys[t] = keys_of(chunk.tiles[t], scratch.keys.begin() + t * depth * kTileTokens);
    over_tiles(rows, chunk.num_tiles, [&](int64_t row, auto height, int64_t first, auto blocks) {
      score_tile<decltype(height)::value, kColumns<decltype(blocks)::value>>(
          scratch.queries.begin() + row * shape_.head_dim, shape_.head_dim, keys + first, depth,
          scratch.scores.begin() + row * kChunk + first * kLanes);
    });
  }

  // Tiles are functions of their own, so that they have all registers.
  template <int Rows, int Registers>
  static __attribute__((noinline)) void score_tile(const Operand<T>* queries, int64_t head_dim, const uint32_t* const* keys,
                                                   int64_t depth, float* scores) {
    FloatRegister acc[Rows][Registers] = {};
    multiply<T>(queries, head_dim, keys, depth, acc);
    unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
      unrolled<Registers>([&](auto c) TRIERARCH_LAMBDA_INLINE {
        store(scores + m * kChunk + c * kRegisterLanes, acc[m][c]);
      });
    });
  }

  // Scores of one row become weights; `sums` takes in their largest and total.
  void weigh(int64_t row, int64_t position, int64_t chunk, int64_t num_tiles, const Partial& sums,
             AttentionScratch<T>& scratch) const {
    using V = FloatRegister;
    float* scores = scratch.scores.begin() + row * kChunk;
    Operand<T>* weights = scratch.weights.begin() + row * kChunk;
    const int64_t first = first_visible(position) - chunk, last = position - chunk;
    V values[kColumns<kChunkTiles>];
    Parts<V> most;
    for (V& part : most.at) part = splat<V>(kNothing);
    const auto over_registers = [&](auto&& use) TRIERARCH_LAMBDA_INLINE {
      for (int64_t n = 0; n < num_tiles; ++n)
        unrolled<kParts>([&](auto p) TRIERARCH_LAMBDA_INLINE { use(n * kParts + p, p); });
    };
    over_registers([&](int64_t n, auto p) TRIERARCH_LAMBDA_INLINE {
      const int64_t place = n * kRegisterLanes;
      V value = load<V>(scores + place) * shape_.scale;
      if constexpr (kHasScales) value *= load<V>(scratch.key_scales.begin() + place);
      if (shape_.softcap != 0) value = hyperbolic_tangent(value / shape_.softcap) * shape_.softcap;
      const IntRegister column = lane_numbers() + static_cast<int32_t>(place);
      if (last < place + kRegisterLanes - 1) value = column > static_cast<int32_t>(last) ? splat<V>(kNothing) : value;
      if (first > place) value = column < static_cast<int32_t>(first) ? splat<V>(kNothing) : value;
      values[n] = value;
      most.at[p] = larger(most.at[p], value);
    });
    const float before = sums.largest[row], now = std::fmax(before, largest(most.template whole<Floats>()));
    if (now == kNothing) {  // the row sees none of these keys
      scratch.scale[row] = 1;
      std::memset(weights, 0, num_tiles * kLanes * sizeof(*weights));
      return;
    }
    Parts<V> total = {};
    over_registers([&](int64_t n, auto p) TRIERARCH_LAMBDA_INLINE {
      V weight = exponential(values[n] - now);
      total.at[p] += weight;
      if constexpr (kHasScales) weight *= load<V>(scratch.value_scales.begin() + n * kRegisterLanes);
      store_elements(weights + n * kRegisterLanes, weight);
    });
    scratch.scale[row] = before == now ? 1.0f : std::exp(before - now);
    sums.largest[row] = now;
    sums.total[row] = sums.total[row] * scratch.scale[row] + sum(total.template whole<Floats>());
  }

  // sums.values = sums.values * scale + weights · values.
  void mix(int64_t rows, const Chunk& chunk, const Partial& sums, AttentionScratch<T>& scratch) const {
    constexpr int64_t kDepth = kTileTokens / kPerWord<T>;
    const int64_t width = shape_.head_dim / kLanes;
    const uint32_t* values[kChunkTiles];
    for (int64_t t = 0; t < chunk.num_tiles; ++t)
      values[t] = values_of(chunk, t, scratch.values.begin() + t * width * kDepth * kLanes);
    over_tiles(rows, width, [&](int64_t row, auto height, int64_t first, auto blocks) {
      mix_tile<decltype(height)::value, kColumns<decltype(blocks)::value>>(
          scratch.weights.begin() + row * kChunk, values, first * kDepth * kLanes, chunk.num_tiles,
          scratch.scale.begin() + row, sums.values + row * shape_.head_dim + first * kLanes, shape_.head_dim);
    });
  }

  template <int Rows, int Registers>
  static __attribute__((noinline)) void mix_tile(const Operand<T>* weights, const uint32_t* const* values, int64_t offset,
                                                 int64_t num_tiles, const float* scale, float* sums, int64_t head_dim) {
    constexpr int64_t kDepth = kTileTokens / kPerWord<T>;
    FloatRegister acc[Rows][Registers];
    unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
      unrolled<Registers>([&](auto c) TRIERARCH_LAMBDA_INLINE {
        acc[m][c] = load<FloatRegister>(sums + m * head_dim + c * kRegisterLanes) * scale[m];
      });
    });
    for (int64_t t = 0; t < num_tiles; ++t)
      multiply<T>(weights + t * kTileTokens, kChunk, values[t] + offset, kDepth * kLanes, kDepth, acc);
    unrolled<Rows>([&](auto m) TRIERARCH_LAMBDA_INLINE {
      unrolled<Registers>([&](auto c) TRIERARCH_LAMBDA_INLINE {
        store(sums + m * head_dim + c * kRegisterLanes, acc[m][c]);
      });
    });
  }

  // Calls use(first row, rows as a constant, first block, blocks as a constant) until both are covered.
  template <class Use>
  static void over_tiles(int64_t rows, int64_t num_blocks, Use&& use) {
    const auto cover = [&](auto shape) __attribute__((always_inline)) {
      constexpr TileShape kShape = decltype(shape)::value;
      over_block_tiles<kShape.blocks>(num_blocks, [&](int64_t first, auto blocks) {
        over_row_tiles<kShape.rows>(rows, [&](int64_t row, auto height) { use(row, height, first, blocks); });
      });
    };
    // Wide registers hold all of a chunk's blocks.
    if constexpr (kParts == 1) cover(ShapeConstant<kWide>());
    else with_shape(rows, cover);
  }

  const AttentionShape& shape_;
  const TrierarchStep& step_;
  const PagedKv<T, K> kv_;
  const int64_t* first_rows_;
  const Operand<T>* queries_;
  Operand<T>* result_;
  const Partial partials_;
};

}  // namespace trierarch
