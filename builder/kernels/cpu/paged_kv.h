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

  T* key(const int64_t* table, int64_t head, int64_t position) const { return keys_ + offset(table, head, position); }
  T* value(const int64_t* table, int64_t head, int64_t position) const {
    return values_ + offset(table, head, position);
  }

 private:
  int64_t offset(const int64_t* table, int64_t head, int64_t position) const {
    const int64_t block = table[position / block_size_], slot = position % block_size_;
    return ((block * num_heads_ + head) * block_size_ + slot) * head_dim_;
  }

  const int64_t num_heads_, block_size_, head_dim_;
  T* keys_;
  T* values_;
};

}  // namespace trierarch
