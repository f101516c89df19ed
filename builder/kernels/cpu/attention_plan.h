// AttentionPlan: a step's attention cut into items of work, for layers of one window. Made once a step.
//
// Keys are walked in *segments* that begin at multiples of kSegment, and a query's partial results are merged segment by
// segment in order. A long context of few queries is shared out by segments, a long run of queries by query tiles; the
// arithmetic of a query is the same either way.
#pragma once

#include <algorithm>
#include <vector>

#include "abi.h"

namespace trierarch {

constexpr int64_t kChunk = 64;      // keys whose scores are held at once
constexpr int64_t kSegment = 256;   // keys merged at once; a multiple of kChunk
constexpr int64_t kQueryRows = 48;  // rows (queries times heads of a group) for which packed keys are used again

struct AttentionItem {
  int64_t sequence, kv_head;
  int64_t first_query, num_queries;  // of the sequence's in this step
  int64_t first_segment, end_segment;
  int64_t partial;  // where its partial result goes, in rows of the step's scratch; -1: the item is a query's whole
};

struct MergeItem {
  int64_t sequence, kv_head, num_queries;
  int64_t partial, num_partials;
};

struct AttentionPlan {
  std::vector<AttentionItem> items;
  std::vector<MergeItem> merges;
  int64_t num_partial_rows = 0;

  AttentionPlan(const TrierarchStep& step, int64_t num_kv_heads, int64_t group, int64_t window) {
    const int64_t tile = std::max<int64_t>(1, kQueryRows / group);
    for (int64_t s = 0; s < step.num_sequences; ++s) {
      const int64_t num_queries = step.num_queries[s], num_tiles = (num_queries + tile - 1) / tile;
      for (int64_t head = 0; head < num_kv_heads; ++head)
        for (int64_t t = 0; t < num_tiles; ++t) {
          const int64_t first = num_queries * t / num_tiles, end = num_queries * (t + 1) / num_tiles;
          const int64_t position = step.starts[s] + first;
          const int64_t first_key = window == 0 ? 0 : std::max<int64_t>(0, position + 1 - window);
          const int64_t end_key = step.starts[s] + end;
          AttentionItem item{s, head, first, end - first, first_key / kSegment, (end_key - 1) / kSegment + 1, -1};
          if (num_tiles == 1 && item.end_segment - item.first_segment > 1) split(item, group);
          else items.push_back(item);
        }
    }
    // The long ones first: what is left at the end is short, and no thread waits for another.
    std::stable_sort(items.begin(), items.end(), [](const AttentionItem& a, const AttentionItem& b) {
      return (a.end_segment - a.first_segment) * a.num_queries > (b.end_segment - b.first_segment) * b.num_queries;
    });
  }

 private:
  void split(const AttentionItem& whole, int64_t group) {
    const int64_t num_partials = whole.end_segment - whole.first_segment;
    merges.push_back({whole.sequence, whole.kv_head, whole.num_queries, num_partial_rows, num_partials});
    for (int64_t segment = whole.first_segment; segment < whole.end_segment; ++segment) {
      AttentionItem item = whole;
      item.first_segment = segment;
      item.end_segment = segment + 1;
      item.partial = num_partial_rows;
      items.push_back(item);
      num_partial_rows += whole.num_queries * group;
    }
  }
};

}  // namespace trierarch
