// ThreadPool: one team of threads that runs a step together (SPMD), spinning inside it.
//
// Between steps the threads spin for a short while, then sleep on a futex. Inside a step they meet
// at barriers and claim work from counters, which `run` zeroes. A waiting thread that has spun for
// long yields its core: with as many threads as cores, whoever is late may need it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace penstock {

struct alignas(64) Counter {
  std::atomic<int32_t> next{0};
};

// How to wait for another thread: a while of pauses, then others may run.
class Waiting {
 public:
  void once();

 private:
  int spins_ = 0;
};

class Team;

using TeamFn = void (*)(void* arg, Team& team, int thread);

// What the threads of one step see.
class Team {
 public:
  explicit Team(int size) : size_(size) {}

  int size() const { return size_; }

  // Every thread calls it the same number of times; returns when all have.
  void barrier();

  // How many items of `part` (one of `size`) of `phase` are claimed before this one.
  int claim(int phase, int part) {
    return counters_[phase * size_ + part].next.fetch_add(1, std::memory_order_relaxed);
  }

  // Counters for `phases` phases, all zero. Only between steps.
  void prepare(int phases);

 private:
  int size_;
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::vector<Counter> counters_;
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return team_.size(); }
  Team& team() { return team_; }

  // fn(arg, team, i) on every thread, the caller being thread 0, with `phases` counters at zero. Returns when
  // all have returned. Callers take turns: two models may share the pool.
  void run(int phases, TeamFn fn, void* arg);

 private:
  void work(int thread);

  Team team_;
  TeamFn fn_ = nullptr;
  void* arg_ = nullptr;
  alignas(64) std::atomic<uint32_t> started_{0};
  alignas(64) std::atomic<int32_t> running_{0};
  std::atomic<bool> stop_{false};
  std::mutex turn_;
  std::vector<std::thread> threads_;
};

}  // namespace penstock
