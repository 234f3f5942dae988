// Packing of integers with float32 scales, and rounding of floats to integers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "core/pack.h"

namespace penstock {
namespace {

// To half precision, ties to even. Throws beyond ±65504.
uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x477FF000) {
    throw std::overflow_error("a weight beyond ±65504 or not a number can't be rounded to 4 bits; take int8 or bf16");
  }
  if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24
    return uint16_t(sign | uint16_t(std::nearbyint(std::fabs(x) * 0x1p24f)));
  }
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13));
}

// Of a finite half: the exponent is moved by a product with 2^112, which also makes subnormals normal.
float half_value(uint16_t half) {
  const uint32_t magnitude = uint32_t(half & 0x7FFF) << 13;
  float x;
  std::memcpy(&x, &magnitude, 4);
  x *= 0x1p112f;
  return half & 0x8000 ? -x : x;
}

// To the nearest, ties to even, for |x| < 2^22: std::nearbyint is a call per weight.
int rounded(float x) {
  const float shifted = x + kMagic;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - kMagicBits;
}

// A row's integers and the headers of its groups. `offset` is for the stored byte (see Format).
void put_row(const uint8_t* integers, const float* scales, const float* offsets, const Weight& weight, uint8_t* panel,
             int lane) {
  const bool own = weight.group == kGroup;
  const int values = pair_bytes(weight.format), header = own ? 256 : 128;
  const int each = own ? 1 : (weight.group + 63) / 64;  // pairs of groups of 32
  const float middle = weight.format == Format::Q8Group ? 128.0f : 0.0f;
  const int pairs = (weight.k + 63) / 64;
  uint8_t some[64];
  for (int p = 0; p < pairs; ++p) {
    uint8_t* block = panel + int64_t(p / each) * (header + int64_t(each) * values);
    auto head = [&](int group, uint8_t* to) {
      if (group * weight.group >= weight.k) return;
      const float offset = offsets[group] + middle * scales[group];
      std::memcpy(to + 4 * lane, scales + group, 4);
      std::memcpy(to + 64 + 4 * lane, &offset, 4);
    };
    if (own) {
      head(2 * p, block);
      head(2 * p + 1, block + 128);
    } else if (p % each == 0) {
      head(p / each, block);
    }
    const uint8_t* from = integers + 64 * p;
    const int left = weight.k - 64 * p;
    if (left < 64) {
      std::memset(some, 0, sizeof some);
      std::memcpy(some, from, left);
      from = some;
    }
    put_pair(weight.format, from, block + header + int64_t(p % each) * values, lane);
  }
}

// Symmetric around 128, -127..127.
float round_row(const float* row, int k, uint8_t* integers) {
  float peak = 0;
  bool finite = true;
  for (int i = 0; i < k; ++i) {
    peak = std::max(peak, std::fabs(row[i]));
    finite &= std::isfinite(row[i]);
  }
  if (!finite) throw std::overflow_error("a weight that is infinite or not a number can't be rounded to 8 bits");
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
  for (int i = 0; i < k; ++i) integers[i] = uint8_t(rounded(row[i] * inverse) + 128);
  return peak / 127.0f;
}

// One group of up to 32 to nibbles; its scale and minimum as halves.
void round_group(const float* x, int count, uint8_t* integers, uint16_t* scale, uint16_t* minimum) {
  // Four of each, so that they are vectors; `zero` is NaN if any weight is infinite or not a number.
  float low[4], high[4], zero[4] = {};
  for (int j = 0; j < 4; ++j) low[j] = high[j] = x[0];
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int j = 0; j < 4; ++j) {
      low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
      high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
      zero[j] += 0.0f * x[i + j];
    }
  }
  for (; i < count; ++i) {
    low[0] = std::min(low[0], x[i]), high[0] = std::max(high[0], x[i]);
    zero[0] += 0.0f * x[i];
  }
  const float least = std::min(std::min(low[0], low[1]), std::min(low[2], low[3]));
  const float most = std::max(std::max(high[0], high[1]), std::max(high[2], high[3]));
  *minimum = to_half(least + (zero[0] + zero[1]) + (zero[2] + zero[3]));
  const float start = half_value(*minimum);
  *scale = to_half((most - start) / 15.0f);
  const float step = half_value(*scale), inverse = step > 0 ? 1.0f / step : 0.0f;
  for (i = 0; i < count; ++i) {
    integers[i] = uint8_t(rounded(std::min(std::max((x[i] - start) * inverse, 0.0f), 15.0f)));
  }
}

void round_to_q4(const float* row, int k, uint8_t* panel, int lane) {
  uint8_t integers[64];
  for (int first = 0; first < k; first += 64, panel += 640) {
    std::memset(integers, 0, sizeof integers);
    for (int odd = 0; odd < 2 && first + 32 * odd < k; ++odd) {
      const int begin = first + 32 * odd, at = 2 * (16 * odd + lane);
      uint16_t scale, minimum;
      round_group(row + begin, std::min(kGroup, k - begin), integers + 32 * odd, &scale, &minimum);
      std::memcpy(panel + 512 + at, &scale, 2);
      std::memcpy(panel + 576 + at, &minimum, 2);
    }
    put_pair(Format::Q4, integers, panel, lane);
  }
}

}  // namespace

void pack_integers(const uint8_t* rows, const float* scales, const float* offsets, int count, int first,
                   const Weight& weight, uint8_t* out) {
  const int64_t groups = (weight.k + weight.group - 1) / weight.group;
  for (int64_t i = 0; i < count; ++i) {
    const Place place = place_of(first + int(i), weight.n, weight.gated);
    put_row(rows + i * weight.k, scales + i * groups, offsets + i * groups, weight,
            out + place.panel * weight.panel_stride, place.lane);
  }
}

void quantize_floats(const float* rows, int count, int first, const Weight& weight, uint8_t* out) {
  std::vector<uint8_t> integers(weight.k);
  for (int64_t i = 0; i < count; ++i, rows += weight.k) {
    const Place place = place_of(first + int(i), weight.n, weight.gated);
    uint8_t* panel = out + place.panel * weight.panel_stride;
    if (weight.format == Format::Q4) {
      round_to_q4(rows, weight.k, panel, place.lane);
      continue;
    }
    const float scale = round_row(rows, weight.k, integers.data()), offset = -128.0f * scale;
    put_row(integers.data(), &scale, &offset, weight, panel, place.lane);
  }
}

}  // namespace penstock
