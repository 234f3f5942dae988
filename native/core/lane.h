// Lane: what one thread knows while it runs a step's operations.
#pragma once

#include <algorithm>

#include "core/executor.h"

namespace penstock {

constexpr int kPrivateTokens = 4;   // up to so many tokens every thread makes norms and routes for itself
constexpr int kPrefetchRows = 64;   // up to so many rows the weights' way from memory decides
constexpr int kChunk = 8;           // panels claimed at once, at most

struct Executor::Lane {
  Team& team;
  int thread;
  int phase;
  bool small;  // few tokens: norms are private

  // fn(first, last) for every chunk that this thread gets of `total` items: first those of its own part, the same
  // in every operation, which its caches hold; then what others have left of theirs.
  template <typename Fn>
  void share(int total, int chunk, Fn fn) {
    const int size = team.size(), chunks = (total + chunk - 1) / chunk;
    for (int i = 0; i < size; ++i) {
      const int part = (thread + i) % size, begin = int(int64_t(chunks) * part / size);
      const int end = int(int64_t(chunks) * (part + 1) / size);
      for (int at = begin + team.claim(phase, part); at < end; at = begin + team.claim(phase, part)) {
        fn(at * chunk, std::min((at + 1) * chunk, total));
      }
    }
    ++phase;
  }

  // fn(first, last) for this thread's part of `total`, all in one piece. What waits for memory should read far ahead
  // without a break: claimed piece by piece, the same weights come at half the speed.
  template <typename Fn>
  void split(int total, Fn fn) {
    const int size = team.size();
    const int first = int(int64_t(total) * thread / size), last = int(int64_t(total) * (thread + 1) / size);
    if (first < last) fn(first, last);
  }

  // fn(item, next) for every item that this thread gets of `total`: the first is its own by right, each next one
  // is claimed before the item begins. next = -1: none.
  template <typename Fn>
  void share_ahead(int total, Fn fn) {
    auto claim = [&] {
      const int item = team.size() + team.claim(phase, 0);
      return item < total ? item : -1;
    };
    for (int item = thread < total ? thread : -1, next; item >= 0; item = next) {
      next = claim();
      fn(item, next);
    }
    ++phase;
  }
};

}  // namespace penstock
