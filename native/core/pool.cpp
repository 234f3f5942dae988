#include "core/pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace penstock {
namespace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 4000;           // pauses before a waiting thread yields: tens of microseconds
// Between steps a thread spins, then lets others run, then sleeps: one that is woken may find itself on the core
// of another thread of the team, and both wait for each other until the system notices.
constexpr int kSpinMicroseconds = 80, kYieldMicroseconds = 2000;

}  // namespace

void Waiting::once() {
  if (spins_ < kSpins) {
    ++spins_;
    pause();
  } else {
    sched_yield();
  }
}

void Team::barrier() {
  if (size_ == 1) return;
  uint32_t epoch = epoch_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    epoch_.store(epoch + 1, std::memory_order_release);
    return;
  }
  for (Waiting waiting; epoch_.load(std::memory_order_acquire) == epoch;) waiting.once();
}

void Team::prepare(int phases) {
  const int counters = phases * size_;
  if (int(counters_.size()) < counters) counters_ = std::vector<Counter>(counters);
  for (int i = 0; i < counters; ++i) counters_[i].next.store(0, std::memory_order_relaxed);
}

ThreadPool::ThreadPool(int threads) : team_(threads) {
  for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(int phases, TeamFn fn, void* arg) {
  std::lock_guard turn(turn_);
  team_.prepare(phases);
  fn_ = fn;
  arg_ = arg;
  running_.store(team_.size() - 1, std::memory_order_relaxed);
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  fn(arg, team_, 0);
  for (Waiting waiting; running_.load(std::memory_order_acquire) != 0;) waiting.once();
}

void ThreadPool::work(int thread) {
  using Clock = std::chrono::steady_clock;
  uint32_t seen = 0;
  while (true) {
    const auto began = Clock::now();
    while (started_.load(std::memory_order_acquire) == seen) {
      for (int i = 0; i < 64 && started_.load(std::memory_order_relaxed) == seen; ++i) pause();
      const auto waited = Clock::now() - began;
      if (waited > std::chrono::microseconds(kYieldMicroseconds)) {
        started_.wait(seen, std::memory_order_acquire);
      } else if (waited > std::chrono::microseconds(kSpinMicroseconds)) {
        sched_yield();
      }
    }
    ++seen;
    if (stop_.load()) return;
    fn_(arg_, team_, thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace penstock
