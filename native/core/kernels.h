// KernelTable: the work items that an instruction set implements. The executor cuts a step into
// these items and knows nothing of instruction sets; the table is filled in isa/*.cpp.
//
// No item depends on what other items or rows do: the bits of a row's result are the same alone, in
// any batch and at any chunking.
#pragma once

#include "core/types.h"

namespace penstock {

// Panels [first, last) of `weight` (of one expert) times `rows` rows of `input`.
struct LinearArgs {
  const Weight* weight;
  Activations input;
  int rows;
  int expert;
  int first;
  int last;
  const float* bias;    // [N] of this expert or null; for gated: gate then up, [2 * size]
  float* out;           // [rows, N]
  int64_t out_stride;
  float scale;          // store: y * scale; add: out + y * scale
  float softcap;        // store only; 0: none
  bool prefetch;        // the weights come from memory: few rows
  Activation activation;  // gated only
  Activations hidden;     // gated only: [rows, size]
};

// One token: norm of heads, rotation, K and V to their page, q to `q`.
struct RotateArgs {
  const Rotation* rotation;
  const float* qkv;  // [(H + 2G) * D]
  const float* cos;  // [half]
  const float* sin;
  float* q;          // [H * D], scores with it are in units of log2
  const LayerPages* pages;
  int32_t block;
  int32_t place;     // of the token in its block
  int first_head;    // heads [first_head, last_head) of H + 2G, for callers that split a token
  int last_head;
};

// Queries of one row and one KV head over the keys of range [key_first, key_last), a multiple-of-64 start.
// Query i of `tokens` is at position `position + i`; each token has `heads_each` query heads.
struct AttendArgs {
  const Attention* attention;
  const LayerPages* pages;
  const int32_t* table;  // logical block -> block id of this row
  int kv_head;
  int first_head;        // query heads [first_head, first_head + heads_each), all of kv_head
  int heads_each;        // at most kMaxItemHeads
  const float* q;        // token 0, [H * D] per token, q_stride apart
  int64_t q_stride;
  int tokens;
  int32_t position;
  float* out;            // token 0, [H * D] per token (final = the mixed values), out_stride apart
  int64_t out_stride;
  // A range's partial result instead: per token and head of first_head.., [D] values, maximum, sum.
  // null: the whole context is attended here, range by range, and `out` is final.
  float* partial;
  int range;             // index of the range when `partial` is set
  Activations quantized; // token 0: `out` as int8 too, where the item's heads are whole groups; or none
  uint8_t* scratch;      // attend_scratch() bytes where blocks hold fewer than 16 keys
  const AttendArgs* next;  // the caller's next item, whose first keys are fetched while this one ends; or null
};

// One head over a text of an encoder: rows of q, k and v are `stride` floats apart, all in one matrix.
struct AttendTextArgs {
  const float* q;
  const float* k;
  const float* v;
  int64_t stride;
  int tokens;
  int head_dim;
  float scale;
  float* out;       // [tokens, head_dim], out_stride apart
  int64_t out_stride;
  float* scratch;   // attend_text_scratch() floats
};

// The sampler's: scores of a block that has one maximum, of a block that has one sum.
constexpr int kPeakBlock = 64;
constexpr int kSumBlock = 4 * kPeakBlock;
constexpr double kNoWeight = -29.9;  // exp of it is less than half a unit of weight, 2^-43

// 64 keys and values of one KV head.
constexpr int64_t attend_scratch(KvKind kind, int head_dim) {
  return int64_t(2) * kKeyBlock * (head_dim + 2) * int(kind);
}

// Keys and values of one head in panels, and the scores of a tile of rows.
constexpr int64_t attend_text_scratch(int tokens, int head_dim, int tile_rows) {
  const int64_t padded = (tokens + kPanel - 1) / kPanel * kPanel, wide = (head_dim + kPanel - 1) / kPanel * kPanel;
  return padded * head_dim + wide * tokens + tile_rows * padded;
}

struct KernelTable {
  const char* name;
  int tile_rows;

  // weight row `token` times `scale` -> out [K]
  void (*embed)(const Weight& weight, int32_t token, float scale, float* out);
  // x [n] / rms * gain -> out.f and/or out.q (whichever is set)
  void (*norm)(const float* x, const float* gain, float eps, int n, const Activations& out);
  // x [n] -> out.q with scales, zero up to a multiple of 64
  void (*quantize)(const float* x, int n, const Activations& out);
  // the same with one scale for the whole row
  void (*quantize_row)(const float* x, int n, const Activations& out);
  // x += scale * delta
  void (*add)(float* x, const float* delta, float scale, int n);
  void (*linear)(const LinearArgs&);        // out = product
  void (*linear_add)(const LinearArgs&);    // out += product
  void (*linear_gated)(const LinearArgs&);  // [first, last) in multiples of 4 panels
  void (*rotate)(const RotateArgs&);
  void (*attend)(const AttendArgs&);
  // Partials of `ranges` ranges -> heads [first_head, first_head + heads) of out [H * D], in order of the ranges.
  void (*merge)(const Attention&, const float* partials, int ranges, int first_head, int heads, float* out,
                const Activations& quantized);
  // x += sigmoid(gate) * delta
  void (*add_sigmoid)(float* x, const float* delta, float gate, int n);
  // scores [experts] -> ids and weights [top_k] (see kernels/experts.inl)
  void (*route)(const float* scores, int experts, int top_k, bool softmax_before, bool normalize, int32_t* ids,
                float* weights);
  // out [n] = sum of weights[j] * rows[j], j < count
  void (*mix)(const float* const* rows, const float* weights, int count, int n, float* out);
  // Encoders: LayerNorm of x [n] (+ delta [n] or null) -> out [n]; out = act(product + bias); attention of a head
  void (*layer_norm)(const float* x, const float* delta, const float* gain, const float* bias, float eps, int n,
                     float* out);
  void (*linear_activated)(const LinearArgs&);
  void (*attend_text)(const AttendTextArgs&);
  // index of the largest, of equal ones the first; a NaN wins
  int (*argmax)(const float* x, int n);

  // peaks[i] = maximum of block i of scores x [n]; false if one of them is NaN
  bool (*sample_peaks)(const float* x, int n, float* peaks);
  // weights[i] = exp((x[i] - peak) * inverse) in units of 2^-42, rounded; inverse of the temperature, finite
  void (*sample_weigh)(const float* x, int n, double peak, double inverse, int64_t* weights);
  // sums[i] = sum of the weights of block i of kSumBlock
  void (*sample_sums)(const float* x, int n, const float* peaks, double peak, double inverse, int64_t* sums);
  // the same in float32 with 2^42 units as 1, within one part in 10^5 and half a unit a score
  void (*sample_estimates)(const float* x, int n, const float* peaks, float peak, float inverse, float* sums);
};

// Bytes of float per (token, head) of a partial: [D] values, maximum, sum.
constexpr int partial_floats(int head_dim) { return head_dim + 2; }

// Those that the compiler and the architecture have (CMakeLists.txt, core/cpu.cpp).
const KernelTable* amx_kernels();
const KernelTable* avx512_bf16_kernels();
const KernelTable* avx512_kernels();
const KernelTable* avxvnni_kernels();
const KernelTable* avx2_kernels();
const KernelTable* dotprod_kernels();
const KernelTable* portable_kernels();

}  // namespace penstock
