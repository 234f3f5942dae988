#include "core/pack.h"

#include <cstring>
#include <stdexcept>

namespace penstock {
namespace {

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return uint16_t((bits >> 16) | 64);
  return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Nibbles [32] of a block of 32: GGUF keeps input i in the low half of byte i, input i + 16 in the high half.
inline uint8_t gguf_nibble(const uint8_t* bytes, int i) { return i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4; }

void pack_q4(bool with_minimum, const uint8_t* row, int k, uint8_t* panel, int lane) {
  const int block_bytes = with_minimum ? 20 : 18;
  for (int group = 0; group < k / kGroup; ++group, row += block_bytes) {
    uint8_t* pair = panel + int64_t(group / 2) * 640;
    const int odd = group % 2;
    const uint8_t* nibbles = row + (with_minimum ? 4 : 2);
    for (int line = 0; line < 8; ++line) {
      for (int j = 0; j < 4; ++j) {
        pair[line * 64 + lane * 4 + j] |= uint8_t(gguf_nibble(nibbles, line * 4 + j) << (odd * 4));
      }
    }
    uint16_t scale, minimum;
    std::memcpy(&scale, row, 2);
    if (with_minimum) {
      std::memcpy(&minimum, row + 2, 2);
    } else {
      minimum = minus_times_power(scale, 3);
    }
    std::memcpy(pair + 512 + (odd * 16 + lane) * 2, &scale, 2);
    std::memcpy(pair + 576 + (odd * 16 + lane) * 2, &minimum, 2);
  }
}

void pack_q8(const uint8_t* row, int k, uint8_t* panel, int lane) {
  for (int group = 0; group < k / kGroup; ++group, row += 34) {
    uint8_t* out = panel + int64_t(group) * 544;
    for (int line = 0; line < 8; ++line) {
      for (int j = 0; j < 4; ++j) out[line * 64 + lane * 4 + j] = uint8_t(int8_t(row[2 + line * 4 + j]) + 128);
    }
    std::memcpy(out + 512 + lane * 2, row, 2);
  }
}

}  // namespace

int panel_count(int n, bool gated) {
  if (!gated) return (n + kPanel - 1) / kPanel;
  const int half = (n / 2 + kPanel - 1) / kPanel;
  return 2 * (half + half % 2);
}

Place place_of(int feature, int n, bool gated) {
  if (!gated) return {feature / kPanel, feature % kPanel};
  const int size = n / 2, up = feature >= size, i = feature - up * size;
  return {2 * (i / kPanel) + up, i % kPanel};
}

void pack_stored(Stored kind, const uint8_t* rows, int count, int first, const Weight& weight, uint8_t* out) {
  const int64_t bytes = stored_row_bytes(kind, weight.k);
  for (int i = 0; i < count; ++i, rows += bytes) {
    const Place place = place_of(first + i, weight.n, weight.gated);
    uint8_t* panel = out + place.panel * weight.panel_stride;
    switch (kind) {
      case Stored::Q8_0: pack_q8(rows, weight.k, panel, place.lane); break;
      case Stored::Q4_0:
      case Stored::Q4_1: pack_q4(kind == Stored::Q4_1, rows, weight.k, panel, place.lane); break;
      default: pack_row(kind, rows, weight.k, panel, place.lane);
    }
  }
}

void pack_floats(const float* rows, int count, int first, const Weight& weight, uint8_t* out) {
  for (int i = 0; i < count; ++i, rows += weight.k) {
    const Place place = place_of(first + i, weight.n, weight.gated);
    uint8_t* panel = out + place.panel * weight.panel_stride;
    uint8_t* lane = panel + place.lane * 4;
    if (weight.format == Format::F32) {
      for (int j = 0; j < weight.k; ++j, lane += kPanel * 4) std::memcpy(lane, rows + j, 4);
      continue;
    }
    for (int j = 0; j < weight.k; j += 2, lane += kPanel * 4) {
      const uint32_t first = to_bf16(rows[j]), second = j + 1 < weight.k ? to_bf16(rows[j + 1]) : 0;
      const uint32_t pair = first | second << 16;
      std::memcpy(lane, &pair, 4);
    }
  }
}

}  // namespace penstock
