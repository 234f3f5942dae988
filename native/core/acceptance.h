// Synthetic acceptance: drafts that count by chance, whatever the model says, for load tests. The same as
// penstock.decoding.drafting.acceptance.
#pragma once

#include <cstdint>
#include <vector>

#include "core/sample.h"

namespace penstock {

struct SyntheticAcceptance {
  static constexpr uint32_t kStream = 1;  // of the noise of a position; its token is drawn with 0

  std::vector<double> chances;  // by place in a draft: that it counts where all before it do; empty: off

  bool is_on() const { return !chances.empty(); }

  // How many of `count` drafts count, the first of which is for `position`.
  int accepted(uint64_t seed, uint32_t position, int count) const {
    for (int place = 0; place < count; ++place) {
      const double noise = double(noise_bits(seed, position + uint32_t(place), kStream)) * 0x1p-53;
      if (noise >= chances[size_t(place)]) return place;
    }
    return count;
  }
};

}  // namespace penstock
