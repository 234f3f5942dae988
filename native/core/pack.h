// Packing: rows of a model file, or floats, into panels (types.h).
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

// Rows as stored: blocks of 32 weights, row by row. `kind` is the GGUF type.
enum class Stored : int32_t { Q4_0, Q4_1, Q8_0 };
int64_t stored_row_bytes(Stored kind, int k);
Format packed_format(Stored kind);

// `count` stored rows [count, row bytes] become features first, first + 1, … of `out` (zeroed memory).
void pack_stored(Stored kind, const uint8_t* rows, int count, int first, const Weight& weight, uint8_t* out);

// Float rows [count, K] into F32 or BF16 panels.
void pack_floats(const float* rows, int count, int first, const Weight& weight, uint8_t* out);

}  // namespace penstock
