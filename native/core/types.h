// Types that the executor and the kernels share: weights, activations, KV views, work of one step.
//
// Letters: T tokens of the step, R rows, N and K output and input features of a linear layer,
// H query heads, G KV heads, D head size. "Row" of a matrix product is a token.
#pragma once

#include <cstdint>

// Functions that kernels share with other code are never compiled by themselves: the linker would keep one
// copy, and it could be one with instructions that a machine lacks.
#define PENSTOCK_INLINE __attribute__((always_inline)) inline

namespace penstock {

constexpr int kPanel = 16;      // output features (columns of the product) that a panel holds
constexpr int kGroup = 32;      // inputs that share an activation scale
constexpr int kKeyTile = 16;    // keys of one attention tile
constexpr int kKeyBlock = 64;   // keys between two updates of a softmax's running maximum
constexpr int kKeyRange = 512;  // keys whose partial softmax is one work item's; merged in order
constexpr int kMaxHeadDim = 512;
constexpr int kMaxItemHeads = 16;  // query heads of one attention item
constexpr int kMaxChoices = 64;  // experts of one token

// 0x4B400000 as float is 12582912 = 1.5 * 2^23: an integer sum that starts there is, read as a
// float, that sum plus 12582912, exactly, while it stays within +-2^22.
constexpr int32_t kMagicBits = 0x4B400000;
constexpr float kMagic = 12582912.0f;

// How a weight matrix is held. A panel holds 16 output features; lines are 64 bytes.
//   F32   [K][16] float
//   BF16  [K/2][16][2] bfloat16
//   Q4    per 64 inputs: 8 lines of [16][4] (low nibble: first 32 inputs, high: last 32), then
//         scale f16[2][16], minimum f16[2][16]: w = scale * nibble + minimum. 640 bytes
//   Q8    per 32 inputs: 8 lines of [16][4] as q + 128, scale f16[16]: w = scale * q. 544 bytes
// The others keep their scales before the values. Values of a pair of groups (64 inputs): nibbles as in
// Q4 (512 bytes); 5 bits: then a line of bits per group, bit l for line l; 6 bits: then two lines per group
// of two bits each; 8 bits: both groups as in Q8 (1024 bytes).
//   Q5       per 64: scale f16[2][16], minimum f16[2][16], 5 bits
//   Q4Super  per 256: scale codes u8[8][16], minimum codes u8[8][16], superscales f16[16] and f16[16] (of
//            the minima, negative): w = d * scale code * value + m * minimum code; 4 bits
//   Q5Super  the same with 5 bits
//   Q6       per 256: codes + 128 u8[16][16] of 16 inputs each, superscale f16[16], 32 bytes unused:
//            w = d * code * (value - 32); 6 bits
//   Q4Group  per `group` inputs (32: per 64, both groups' scales first; a multiple of 64; or all K):
//            scale f32[16], offset f32[16], 4 bits: w = scale * value + offset
//   Q8Group  the same with 8 bits: w = scale * (value - 128) + offset
//   Iq4, Fp4 per 64: scale f32[2][16], nibbles: w = scale * (table[nibble] - 128)
enum class Format : int32_t {
  F32, BF16, Q4, Q8, Q5, Q4Super, Q5Super, Q6, Q4Group, Q8Group, Iq4, Fp4
};

// Values of the nibbles of Iq4 (IQ4_NL, IQ4_XS) and Fp4 (twice E2M1), plus 128.
inline constexpr uint8_t kIq4Values[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                           129, 141, 153, 166, 181, 197, 217, 241};
inline constexpr uint8_t kFp4Values[16] = {128, 129, 130, 131, 132, 134, 136, 140,
                                           128, 127, 126, 125, 124, 122, 120, 116};

constexpr bool is_quantized(Format format) { return format >= Format::Q4; }

// Bytes of the values of 64 inputs.
constexpr int pair_bytes(Format format) {
  switch (format) {
    case Format::Q5:
    case Format::Q5Super: return 640;
    case Format::Q6: return 768;
    case Format::Q8Group: return 1024;
    default: return 512;
  }
}

// Bytes of one panel of K inputs; `group` of Q4Group and Q8Group.
constexpr int64_t panel_bytes(Format format, int k, int group = 0) {
  const int64_t pairs = (k + 63) / 64, values = pair_bytes(format);
  switch (format) {
    case Format::Q5:
    case Format::Iq4:
    case Format::Fp4: return pairs * (128 + values);
    case Format::Q4Super:
    case Format::Q5Super:
    case Format::Q6: return (k + 255) / 256 * (320 + 4 * values);
    case Format::Q4Group:
    case Format::Q8Group:
      return group == kGroup ? pairs * (256 + values) : (k + group - 1) / group * 128 + pairs * values;
    case Format::F32: return int64_t(k) * kPanel * 4;
    case Format::BF16: return int64_t((k + 1) / 2) * kPanel * 4;
    case Format::Q4: return int64_t((k + 63) / 64) * 640;
    case Format::Q8: return int64_t((k + 31) / 32) * 544;
  }
  return 0;
}

// (N, K) or (E, N, K). `gated`: panels alternate gate, up; N is 2 * size and `panels` is even, each
// half padded to a multiple of two panels, so that 32 hidden features are four consecutive panels.
struct Weight {
  Format format;
  int32_t n;
  int32_t k;
  int32_t panels;
  int32_t experts;
  bool gated;
  int64_t panel_stride;   // bytes
  int64_t expert_stride;  // bytes
  const uint8_t* data;
  int32_t group;          // inputs that share a scale: Q4Group, Q8Group
  bool per_token;         // the checkpoint prescribes activations with one scale per token

  PENSTOCK_INLINE const uint8_t* panel(int index, int expert = 0) const {
    return data + expert * expert_stride + index * panel_stride;
  }
};

// A [rows, K] input of linear layers: float32, or int8 with a scale per 32 inputs, or both.
// q is zero beyond K up to a multiple of 64. Per row and group: scale, sum = scale * sum(q),
// start = kMagicBits - 128 * sum(q) (where the sum of a Q8 product starts).
//
// Fine pairs: pairs of groups (64 inputs) of which also what the rounding left is held, in 128th steps, as
// further pairs behind the row's own. Products of the same weights with them are added (core/fine.cpp).
struct Activations {
  float* f = nullptr;
  int64_t f_stride = 0;
  int8_t* q = nullptr;
  int64_t q_stride = 0;
  float* scale = nullptr;
  float* sum = nullptr;
  int32_t* start = nullptr;
  // kMagicBits - 32 * sum(q) of both halves of the group, 2 * s_stride a row: only where a Q6 weight reads.
  int32_t* half = nullptr;
  int64_t s_stride = 0;
  const uint16_t* fine = nullptr;  // [fine_pairs] ascending
  int32_t fine_pairs = 0;

  PENSTOCK_INLINE Activations row(int64_t index) const {
    Activations a = *this;
    if (f) a.f += index * f_stride;
    if (q) {
      a.q += index * q_stride;
      a.scale += index * s_stride;
      a.sum += index * s_stride;
      a.start += index * s_stride;
      if (half) a.half += 2 * index * s_stride;
    }
    return a;
  }
};

// The last two without a gate only.
enum class Act : int32_t { Silu = 0, GeluTanh = 1, ClampedSwiglu = 2, Gelu = 3, Relu = 4 };

struct Activation {
  Act kind;
  float alpha;
  float limit;
};

// How keys and values are held; the value is the bytes of an element.
enum class KvKind : int32_t { I8 = 1, Bf16 = 2, F32 = 4 };

// Bytes of one token's key of one head, without its scale; the value's are as many or fewer.
constexpr int64_t kv_row_bytes(KvKind kind, int head_dim) {
  return kind == KvKind::I8 ? (head_dim + 3) / 4 * 4 : int64_t(head_dim) * int(kind);
}

// One layer's pages. Page of one KV head, t = 16 keys or the block size if that is smaller, u = 2 keys or 1
// if that is the block size:
//   bf16  K [block_size/t][D/2][t][2], V [block_size/u][D][u];   f32  K [block_size/t][D][t], V [block_size][D]
//   int8  K [block_size/t][D/4][t][4], V [block_size/w][D][w] with w = 4 or less, as value + 128; D / 4 rounded up;
//         block_size * kv_row_bytes from the start of either: their scales float32 [block_size]
struct LayerPages {
  uint8_t* base;          // block 0
  int64_t block_stride;   // bytes from block to block
  int64_t v_offset;       // bytes from K to V
  int64_t head_stride;    // bytes from KV head to KV head
  int32_t block_size;
  int32_t group;
  KvKind kind;

  PENSTOCK_INLINE uint8_t* k(int32_t block, int head) const { return base + block * block_stride + head * head_stride; }
  PENSTOCK_INLINE uint8_t* v(int32_t block, int head) const { return k(block, head) + v_offset; }
};

struct HeadShape {
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
};

struct Rotation {
  HeadShape shape;
  int32_t half;          // pairs that turn: D' / 2; 0 for none
  bool interleaved;      // pairs (2i, 2i + 1), else (i, i + half)
  const float* q_gain;   // [D] or null
  const float* k_gain;
  float eps;
  float scale;           // of q, the attention's
};

struct Attention {
  HeadShape shape;
  int32_t window;        // 0: none
  float softcap;         // 0: none
  const float* sinks;    // [H] or null
};

}  // namespace penstock
