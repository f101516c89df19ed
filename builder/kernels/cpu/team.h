// Team: the threads of one step. They meet at a barrier after each phase and share a phase's work as they go, so that a
// thread whose core is busy with something else holds the others up little.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace trierarch {

class Meeting {
 public:
  explicit Meeting(int size) : size_(size) {}

  void wait() {
    const uint32_t generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
      if (spins < kPatience) pause();
      else std::this_thread::yield();  // the one we wait for may need this core
    }
  }

  int size() const { return size_; }

  // Of three phases in a row one is worked on, one may still be read by a late thread, and one can be made ready.
  alignas(64) std::atomic<int64_t> next[3] = {0, 0, 0};

 private:
  static constexpr int kPatience = 4096;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

class Team {
 public:
  Team(Meeting& meeting, int member) : meeting_(meeting), member_(member) {}

  int member() const { return member_; }
  int size() const { return meeting_.size(); }

  // Every thread calls it with the same counts; work(begin, end) is called for disjoint ranges of at most `most` that
  // cover 0..count. Ranges shrink towards the end. Returns when all threads are done.
  template <class Work>
  void share(int64_t count, int64_t most, Work&& work) {
    std::atomic<int64_t>& next = meeting_.next[phase_ % 3];
    if (member_ == 0) meeting_.next[(phase_ + 1) % 3].store(0, std::memory_order_relaxed);
    ++phase_;
    const int64_t parts = 2 * meeting_.size();
    while (true) {
      const int64_t left = count - next.load(std::memory_order_relaxed);
      if (left <= 0) break;
      const int64_t wanted = left / parts < 1 ? 1 : (left / parts > most ? most : left / parts);
      const int64_t begin = next.fetch_add(wanted, std::memory_order_relaxed);
      if (begin >= count) break;
      work(begin, begin + wanted < count ? begin + wanted : count);
    }
    meeting_.wait();
  }

  // Runs work(team) on `size` threads.
  template <class Work>
  static void gather(int size, Work&& work) {
    alignas(64) unsigned char place[sizeof(Meeting)];
    Meeting* meeting = nullptr;
#pragma omp parallel num_threads(size) shared(meeting, place, work)
    {
#pragma omp single
      meeting = new (place) Meeting(omp_get_num_threads());  // the runtime may grant fewer
      Team team(*meeting, omp_get_thread_num());
      work(team);
    }
    meeting->~Meeting();
  }

 private:
  Meeting& meeting_;
  const int member_;
  unsigned phase_ = 0;
};

}  // namespace trierarch
