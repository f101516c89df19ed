// Scratch: an array on a cache line that grows and is never cleared.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace trierarch {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size = 0) { reserve(size); }
  Scratch(Scratch&& other) noexcept : size_(std::exchange(other.size_, 0)), data_(std::exchange(other.data_, nullptr)) {}
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() { std::free(data_); }

  // What was there is lost. Throws std::bad_alloc.
  void reserve(int64_t size) {
    if (size <= size_) return;
    std::free(std::exchange(data_, nullptr));
    size_ = 0;
    const int64_t num_bytes = (size * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
    data_ = static_cast<T*>(std::aligned_alloc(kLine, num_bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = size;
  }

  T* begin() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  static constexpr int64_t kLine = 64;
  int64_t size_ = 0;
  T* data_ = nullptr;
};

}  // namespace trierarch
