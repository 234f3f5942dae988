// Packing of the GGUF types beside Q4_0, Q4_1 and Q8_0. Block structures: ggml-common.h; every weight keeps
// its exact value.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/pack.h"

namespace penstock {
namespace {

struct StoredType {
  int block;        // weights
  int block_bytes;
  Format format;
};

constexpr StoredType kTypes[int(Stored::Count)] = {
    {32, 18, Format::Q4},         {32, 20, Format::Q4},         {32, 34, Format::Q8},  {32, 22, Format::Q5},
    {32, 24, Format::Q5},         {256, 110, Format::Q6},       {256, 144, Format::Q4Super},
    {256, 176, Format::Q5Super},  {256, 210, Format::Q6},       {32, 18, Format::Iq4}, {256, 136, Format::Iq4},
    {32, 17, Format::Fp4},
};

uint16_t load16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return x;
}

uint32_t load32(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

template <typename T>
void put(uint8_t* to, int64_t index, T value) {
  std::memcpy(to + index * int64_t(sizeof value), &value, sizeof value);
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7FFF;
  uint32_t bits = magnitude << 13;
  float x;
  std::memcpy(&x, &bits, 4);
  x *= 0x1p112f;
  std::memcpy(&bits, &x, 4);
  if (magnitude >= 0x7C00) bits |= 0x7F800000;
  bits |= sign;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Low nibbles of 16 bytes, then their high ones.
void halves_of(const uint8_t* bytes, uint8_t* out) {
  for (int i = 0; i < 16; ++i) out[i] = bytes[i] & 15, out[i + 16] = bytes[i] >> 4;
}

void add_fifth_bits(const uint8_t* bits, uint8_t* out) {
  const uint32_t high = load32(bits);
  for (int i = 0; i < 32; ++i) out[i] |= uint8_t(((high >> i) & 1) << 4);
}

// 2^(e - 128): half of an E8M0 scale, because the table holds doubled values.
float e8m0_half(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Types with blocks of 32: one group's integers, its scale and minimum.
void pack_groups(Stored kind, const uint8_t* row, int k, uint8_t* panel, int lane) {
  const StoredType& type = kTypes[int(kind)];
  const int values = pair_bytes(type.format), stride = 128 + values, groups = k / kGroup;
  uint8_t integers[64];
  for (int g = 0; g < groups; ++g, row += type.block_bytes) {
    uint8_t* pair = panel + int64_t(g / 2) * stride;
    const int odd = g % 2, at = 16 * odd + lane;
    uint8_t* group = integers + 32 * odd;
    if (!odd) std::memset(integers, 0, sizeof integers);
    switch (kind) {
      case Stored::Q5_0:
        halves_of(row + 6, group);
        add_fifth_bits(row + 2, group);
        put(pair, at, load16(row));
        put(pair + 64, at, minus_times_power(load16(row), 4));
        break;
      case Stored::Q5_1:
        halves_of(row + 8, group);
        add_fifth_bits(row + 4, group);
        put(pair, at, load16(row));
        put(pair + 64, at, load16(row + 2));
        break;
      case Stored::IQ4_NL:
        halves_of(row + 2, group);
        put(pair, at, half_to_float(load16(row)));
        break;
      default:  // MXFP4
        halves_of(row + 1, group);
        put(pair, at, e8m0_half(row[0]));
    }
    if (odd || g + 1 == groups) put_pair(type.format, integers, pair + 128, lane);
  }
}

// The 6-bit scales and minima [8] of Q4_K and Q5_K.
void k_scales(const uint8_t* packed, uint8_t* scales, uint8_t* minima) {
  for (int j = 0; j < 4; ++j) {
    const uint8_t first = packed[j], second = packed[4 + j], rest = packed[8 + j];
    scales[j] = first & 63, scales[4 + j] = uint8_t((rest & 15) | ((first >> 2) & 48));
    minima[j] = second & 63, minima[4 + j] = uint8_t((rest >> 4) | ((second >> 2) & 48));
  }
}

// Q4_K, Q5_K.
void pack_scaled(Stored kind, const uint8_t* block, uint8_t* out, int lane) {
  const bool five = kind == Stored::Q5_K;
  const Format format = kTypes[int(kind)].format;
  uint8_t scales[8], minima[8], integers[256];
  k_scales(block + 4, scales, minima);
  for (int g = 0; g < 8; ++g) out[16 * g + lane] = scales[g], out[128 + 16 * g + lane] = minima[g];
  put(out + 256, lane, load16(block));
  put(out + 288, lane, uint16_t(load16(block + 2) ^ 0x8000));
  const uint8_t *nibbles = block + (five ? 48 : 16), *fifth = block + 16;
  for (int g = 0; g < 8; ++g) {
    for (int j = 0; j < 32; ++j) {
      const uint8_t byte = nibbles[g / 2 * 32 + j];
      integers[32 * g + j] = g % 2 ? byte >> 4 : byte & 15;
      if (five) integers[32 * g + j] |= uint8_t(((fifth[j] >> g) & 1) << 4);
    }
  }
  for (int p = 0; p < 4; ++p) put_pair(format, integers + 64 * p, out + 320 + p * pair_bytes(format), lane);
}

// Six-bit integers [256], 32 above their value, and signed scales [16] to a block of Q6.
void put_six(const uint8_t* integers, const int8_t* scales, uint16_t super, uint8_t* out, int lane) {
  for (int s = 0; s < 16; ++s) out[16 * s + lane] = uint8_t(scales[s] + 128);
  put(out + 256, lane, super);
  for (int p = 0; p < 4; ++p) {
    put_pair(Format::Q6, integers + 64 * p, out + 320 + p * pair_bytes(Format::Q6), lane);
  }
}

void pack_q6_k(const uint8_t* block, uint8_t* out, int lane) {
  uint8_t integers[256];
  int8_t scales[16];
  for (int half = 0; half < 2; ++half) {
    const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
    uint8_t* to = integers + 128 * half;
    for (int j = 0; j < 128; ++j) {
      const uint8_t nibble = j < 64 ? low[j] & 15 : low[j - 64] >> 4;
      to[j] = uint8_t(nibble | ((high[j % 32] >> (2 * (j / 32))) & 3) << 4);
    }
  }
  std::memcpy(scales, block + 192, 16);
  put_six(integers, scales, load16(block + 208), out, lane);
}

// Values -4..3 in blocks of 16 with scales -32..31: a Q6 block that uses few of its integers.
void pack_q3_k(const uint8_t* block, uint8_t* out, int lane) {
  const uint8_t *mask = block, *low = block + 32, *packed = block + 96;
  uint8_t integers[256];
  int8_t scales[16];
  for (int i = 0; i < 256; ++i) {
    const int value = (low[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
    const bool kept = (mask[i % 32] >> (i / 32)) & 1;
    integers[i] = uint8_t(32 + value - (kept ? 0 : 4));
  }
  for (int s = 0; s < 16; ++s) {
    const int nibble = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
    scales[s] = int8_t((nibble | ((packed[8 + s % 4] >> (2 * (s / 4))) & 3) << 4) - 32);
  }
  put_six(integers, scales, load16(block + 108), out, lane);
}

// Pairs of Iq4: their scales are the superscale times a 6-bit one, exact in float32.
void pack_iq4_xs(const uint8_t* block, uint8_t* out, int lane) {
  const float d = half_to_float(load16(block));
  const uint16_t high = load16(block + 2);
  uint8_t integers[64];
  for (int p = 0; p < 4; ++p) {
    uint8_t* pair = out + p * 640;
    for (int odd = 0; odd < 2; ++odd) {
      const int g = 2 * p + odd;
      const int low = odd ? block[4 + g / 2] >> 4 : block[4 + g / 2] & 15;
      put(pair, 16 * odd + lane, d * float((low | ((high >> (2 * g)) & 3) << 4) - 32));
      halves_of(block + 8 + 16 * g, integers + 32 * odd);
    }
    put_pair(Format::Iq4, integers, pair + 128, lane);
  }
}

}  // namespace

int64_t stored_row_bytes(Stored kind, int k) {
  const StoredType& type = kTypes[int(kind)];
  if (k % type.block) throw std::invalid_argument("rows that are no whole number of blocks");
  return int64_t(k / type.block) * type.block_bytes;
}

Format packed_format(Stored kind) { return kTypes[int(kind)].format; }

uint16_t minus_times_power(uint16_t half, int shift) {
  const int exponent = (half >> 10) & 31;
  const uint16_t sign = (half ^ 0x8000) & 0x8000;
  uint32_t mantissa = half & 1023u;
  if (exponent == 0) {  // subnormal: mantissa / 2^24
    if (mantissa == 0) return sign;
    mantissa <<= shift;
    int e = 0;
    while (mantissa >= 2048) mantissa >>= 1, ++e;  // even: at most 10 bits were set before the shift
    const bool normal = mantissa >= 1024;
    return uint16_t(sign | (normal ? ((e + 1) << 10) | (mantissa & 1023) : mantissa));
  }
  if (exponent + shift >= 31) {
    throw std::overflow_error("a scale whose minimum is beyond half precision; load with weights float32");
  }
  return uint16_t(sign | ((exponent + shift) << 10) | mantissa);
}

void put_pair(Format format, const uint8_t* integers, uint8_t* pair, int lane) {
  uint32_t planes[4] = {};
  const bool five = format == Format::Q5 || format == Format::Q5Super, six = format == Format::Q6;
  for (int line = 0; line < 8; ++line) {
    const uint32_t low = load32(integers + 4 * line), high = load32(integers + 32 + 4 * line);
    if (format == Format::Q8Group) {
      put(pair + 64 * line, lane, low);
      put(pair + 512 + 64 * line, lane, high);
      continue;
    }
    put(pair + 64 * line, lane, (low & 0x0F0F0F0F) | (high & 0x0F0F0F0F) << 4);
    if (five) {
      planes[0] |= ((low >> 4) & 0x01010101) << line;
      planes[1] |= ((high >> 4) & 0x01010101) << line;
    } else if (six) {
      planes[line / 4] |= ((low >> 4) & 0x03030303) << (2 * (line % 4));
      planes[2 + line / 4] |= ((high >> 4) & 0x03030303) << (2 * (line % 4));
    }
  }
  for (int p = 0; p < (five ? 2 : six ? 4 : 0); ++p) put(pair + 512 + 64 * p, lane, planes[p]);
}

void pack_row(Stored kind, const uint8_t* row, int k, uint8_t* panel, int lane) {
  const StoredType& type = kTypes[int(kind)];
  if (type.block == kGroup) return pack_groups(kind, row, k, panel, lane);
  const int64_t stride = panel_bytes(type.format, type.block);
  for (int i = 0; i < k; i += type.block, row += type.block_bytes, panel += stride) {
    switch (kind) {
      case Stored::Q3_K: pack_q3_k(row, panel, lane); break;
      case Stored::Q6_K: pack_q6_k(row, panel, lane); break;
      case Stored::IQ4_XS: pack_iq4_xs(row, panel, lane); break;
      default: pack_scaled(kind, row, panel, lane);
    }
  }
}

}  // namespace penstock
