// PagedKv: one layer's keys and values in their blocks, as kv_arrays.py lays them out.
#pragma once

#include "abi.h"

namespace trierarch {

inline const int64_t* block_table(const TrierarchStep& step, int64_t sequence) {
  return step.block_ids + step.table_offsets[sequence];
}

template <class T>
class PagedKv {
 public:
  PagedKv(const TrierarchStep& step, int64_t layer, int64_t num_heads, int64_t head_dim)
      : num_heads_(num_heads), block_size_(step.block_size), head_dim_(head_dim) {
    const int64_t size = step.num_blocks * num_heads * step.block_size * head_dim;
    keys_ = static_cast<T*>(step.kv) + 2 * layer * size;
    values_ = keys_ + size;
  }

  // Addresses of the keys at positions first..first + count; a position below `first_seen` gives null.
  void keys(const int64_t* table, int64_t head, int64_t first, int64_t count, int64_t first_seen, const T** rows) const {
    int64_t block = first / block_size_, slot = first % block_size_;
    const T* row = key(table, head, first);
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = first + i < first_seen ? nullptr : row;
      row += head_dim_;
      if (++slot == block_size_ && i + 1 < count) slot = 0, row = tile(table[++block], head);
    }
  }

  // From a key to the value of the same token.
  int64_t to_value() const { return values_ - keys_; }

  T* key(const int64_t* table, int64_t head, int64_t position) const { return keys_ + offset(table, head, position); }
  T* value(const int64_t* table, int64_t head, int64_t position) const {
    return values_ + offset(table, head, position);
  }

 private:
  int64_t offset(const int64_t* table, int64_t head, int64_t position) const {
    const int64_t block = table[position / block_size_], slot = position % block_size_;
    return ((block * num_heads_ + head) * block_size_ + slot) * head_dim_;
  }

  const T* tile(int64_t block, int64_t head) const { return keys_ + (block * num_heads_ + head) * block_size_ * head_dim_; }

  const int64_t num_heads_, block_size_, head_dim_;
  T* keys_;
  T* values_;
};

}  // namespace trierarch
