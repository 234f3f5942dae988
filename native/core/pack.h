// Packing: rows of a model file, integers with scales, or floats, into panels (types.h).
#pragma once

#include "core/types.h"

namespace penstock {

// Output feature -> panel and lane. Plain: feature i is in panel i / 16. Gated: N = 2 * size, features
// [0, size) are gates, the others ups; panels alternate gate, up, each half padded to whole pairs.
int panel_count(int n, bool gated);
struct Place {
  int panel;
  int lane;
};
Place place_of(int feature, int n, bool gated);

// Rows as stored, block by block. The GGUF type.
enum class Stored : int32_t { Q4_0, Q4_1, Q8_0, Q5_0, Q5_1, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, Count };
int64_t stored_row_bytes(Stored kind, int k);
Format packed_format(Stored kind);

// `count` stored rows [count, row bytes] become features first, first + 1, … of `out` (zeroed memory).
void pack_stored(Stored kind, const uint8_t* rows, int count, int first, const Weight& weight, uint8_t* out);

// Float rows [count, K] into F32 or BF16 panels.
void pack_floats(const float* rows, int count, int first, const Weight& weight, uint8_t* out);

// Integers [count, K] (0..15 for Q4Group, 0..255 for Q8Group) with scale and offset [count, K / group]:
// w = scale * integer + offset.
void pack_integers(const uint8_t* rows, const float* scales, const float* offsets, int count, int first,
                   const Weight& weight, uint8_t* out);

// Float rows [count, K] rounded to integers: Q8Group with one group, symmetric, scale = max|w| / 127; or Q4,
// from each group's smallest to its largest value. Throws std::overflow_error for a Q4 group beyond ±65504.
void quantize_floats(const float* rows, int count, int first, const Weight& weight, uint8_t* out);

// Shared by pack.cpp and pack_formats.cpp.
// -factor * half, factor = 2^shift: exact, or std::overflow_error.
uint16_t minus_times_power(uint16_t half, int shift);

// 64 integers (two groups, the second zero if K has none left) to their places in a pair's values.
void put_pair(Format format, const uint8_t* integers, uint8_t* pair, int lane);

// One stored row of a type beside Q4_0, Q4_1 and Q8_0.
void pack_row(Stored kind, const uint8_t* row, int k, uint8_t* panel, int lane);

}  // namespace penstock
