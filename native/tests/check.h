// What the native test programs share: fixed pseudo-random data, digests of results, the verdict.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/cpu.h"

namespace penstock::check {

// SplitMix64: the same numbers everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int below(int n) { return int(bits() % uint64_t(n)); }
  float uniform(float low, float high) { return low + (high - low) * float(bits() >> 40) * 0x1p-24f; }
  std::vector<float> floats(size_t n, float low = -2.0f, float high = 2.0f) {
    std::vector<float> values(n);
    for (float& value : values) value = uniform(low, high);
    return values;
  }

 private:
  uint64_t state_;
};

// FNV-1a over the bits of results. Zeros count as one value: -0 and 0 compare equal.
class Digest {
 public:
  void add(const float* values, size_t n) {
    for (size_t i = 0; i < n; ++i) {
      uint32_t bits;
      const float value = values[i] == 0.0f ? 0.0f : values[i];
      std::memcpy(&bits, &value, 4);
      mix(bits);
    }
  }
  template <typename T>
  void add_integers(const T* values, size_t n) {
    for (size_t i = 0; i < n; ++i) mix(uint32_t(values[i]));
  }
  uint64_t value() const { return value_; }

 private:
  void mix(uint32_t bits) {
    for (int i = 0; i < 4; ++i, bits >>= 8) value_ = (value_ ^ (bits & 255)) * 0x100000001B3u;
  }
  uint64_t value_ = 0xCBF29CE484222325u;
};

// Largest error relative to what each value may have lost: |a - b| / room.
class Error {
 public:
  void add(double made, double exact, double room) {
    const double error = std::abs(made - exact) / room;
    if (!(error <= worst_)) worst_ = error;  // a NaN stays
  }
  double worst() const { return worst_; }

 private:
  double worst_ = 0;
};

inline bool failed = false;

// "set name digest error": read by tests/native_build. An error above 1 fails the program.
inline void report(const InstructionSet& set, const char* name, const Digest& digest, const Error& error) {
  std::printf("%s %s %016llx %.3f\n", set.name.c_str(), name, static_cast<unsigned long long>(digest.value()),
              error.worst());
  if (!(error.worst() <= 1.0)) failed = true;
}

inline uint16_t half_bits(float x) {  // normal halves only
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits >> 16 & 0x8000) | ((((bits >> 23) & 255) - 112) << 10) | (bits >> 13 & 1023));
}

// Rows as floats and as int8.
struct Rows {
  std::vector<float> f, scale, sum;
  std::vector<int8_t> q;
  std::vector<int32_t> start, half;
  Activations view;

  Rows(int rows, int k, int fine = 0) {
    const int64_t groups = ((k + 63) / 64 + fine) * 2;
    f.resize(size_t(rows) * k);
    q.resize(rows * groups * kGroup);
    scale.resize(rows * groups), sum.resize(rows * groups);
    start.resize(rows * groups), half.resize(2 * rows * groups);
    view.f = f.data(), view.f_stride = k;
    view.q = q.data(), view.q_stride = groups * kGroup;
    view.scale = scale.data(), view.sum = sum.data(), view.start = start.data(), view.half = half.data();
    view.s_stride = groups;
  }
};

}  // namespace penstock::check
