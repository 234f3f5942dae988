// Vectors of 16 floats and 16 int32 for AVX-512 with VNNI. Every kernel is written over these names;
// simd/avx2.h (also for AVX-VNNI) and simd/portable.h define the same ones.
//
// fma(a, b, c) = a * b + c, rounded once. Sums over lanes go in one fixed order.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/types.h"

namespace penstock::PENSTOCK_ISA {

using f32 = __m512;
using i32 = __m512i;

constexpr int kTileRows = 8;      // most rows of a matrix product's tile that fit the registers
constexpr int kGroupsAtOnce = 1;  // groups of Q4's pairs whose sums fit them too

inline f32 load(const float* p) { return _mm512_loadu_ps(p); }
inline f32 load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
inline void store(float* p, f32 v) { _mm512_storeu_ps(p, v); }
inline void store_n(float* p, f32 v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v); }
inline f32 set1(float x) { return _mm512_set1_ps(x); }
inline f32 zero() { return _mm512_setzero_ps(); }
inline f32 add(f32 a, f32 b) { return _mm512_add_ps(a, b); }
inline f32 sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
inline f32 mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
inline f32 div(f32 a, f32 b) { return _mm512_div_ps(a, b); }
inline f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
inline f32 max(f32 a, f32 b) { return _mm512_max_ps(a, b); }
inline f32 min(f32 a, f32 b) { return _mm512_min_ps(a, b); }
inline f32 abs(f32 a) { return _mm512_abs_ps(a); }
inline float hmax(f32 a) { return _mm512_reduce_max_ps(a); }

// Halves are added until one lane is left.
inline float hsum(f32 a) {
  __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

// Lanes i with first + i in [low, high) keep `a`, the others take `other`.
inline f32 keep_range(f32 a, int first, int low, int high, f32 other) {
  const i32 lane = _mm512_add_epi32(_mm512_set1_epi32(first),
                                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  __mmask16 keep = _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(low), _MM_CMPINT_NLT) &
                   _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(high), _MM_CMPINT_LT);
  return _mm512_mask_blend_ps(keep, other, a);
}

inline f32 load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline f32 load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}

inline i32 izero() { return _mm512_setzero_si512(); }
inline i32 iset1(int32_t x) { return _mm512_set1_epi32(x); }
inline i32 load_line(const void* p) { return _mm512_loadu_si512(p); }
inline i32 load_line_n(const void* p, int n) { return _mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1), p); }
inline f32 as_float(i32 a) { return _mm512_castsi512_ps(a); }
inline f32 to_float(i32 a) { return _mm512_cvtepi32_ps(a); }
inline i32 round_to_int(f32 a) { return _mm512_cvtps_epi32(a); }  // to nearest, ties to even
inline int32_t hsum(i32 a) { return _mm512_reduce_add_epi32(a); }

template <int Bits>
inline i32 shift_left(i32 a) {
  return _mm512_slli_epi32(a, Bits);
}
template <int Bits>
inline i32 shift_right(i32 a) {
  return _mm512_srli_epi32(a, Bits);
}
inline i32 keep_bits(i32 a, uint32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(int32_t(mask))); }
inline i32 join_bits(i32 a, i32 b) { return _mm512_or_si512(a, b); }
// Every byte, 0..15, becomes values[byte].
inline i32 look_up(i32 line, const uint8_t* values) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), line);
}
inline f32 load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// The two bfloat16 of every lane as floats: the low half's, the high half's.
inline f32 bf16_low(i32 a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
inline f32 bf16_high(i32 a) { return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(0xFFFF0000))); }

// Dot products of one group of 32 inputs, four at a time. Nibbles: nibble_start, eight dot_nibbles, then
// nibble_total = kMagicBits + dot, or kMagicBits + dot / kHighScale if they were high_nibbles.
// Bytes q + 128: byte_start of kMagicBits - 128 * sum(a), eight dot_bytes give kMagicBits + dot.
using NibbleDot = i32;
constexpr float kHighScale = 1.0f / 16.0f;  // high nibbles stay where they are: 16 times as large
inline i32 low_nibbles(i32 line) { return _mm512_and_si512(line, _mm512_set1_epi32(0x0F0F0F0F)); }
inline i32 high_nibbles(i32 line) { return _mm512_and_si512(line, _mm512_set1_epi32(int32_t(0xF0F0F0F0))); }

// Per lane: acc + sum of its four unsigned bytes times the four signed bytes at `a`.
inline i32 dot_bytes(i32 acc, i32 line, const int8_t* a) {
  // From the intrinsic GCC makes a load, a broadcast and copies of registers; the instruction does it all.
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(line), "m"(*reinterpret_cast<const int32_t*>(a)));
  return acc;
}
inline i32 byte_start(int32_t start) { return iset1(start); }
inline NibbleDot nibble_start() { return iset1(kMagicBits); }
inline NibbleDot dot_nibbles(NibbleDot acc, i32 line, const int8_t* a) { return dot_bytes(acc, line, a); }
inline i32 nibble_total(NibbleDot dot) { return dot; }

// The same sum for bytes up to 63.
inline i32 dot_small(i32 acc, i32 line, const int8_t* a) { return dot_bytes(acc, line, a); }

// dot * d, rounded once, from total = kMagicBits + dot and c = -kMagic * d.
inline f32 scale_total(i32 total, f32 d, f32 c) { return fma(as_float(total), d, c); }

// 16 int32 in -128..127 to 16 bytes.
inline void store_i8(int8_t* p, i32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}

inline i32 iadd(i32 a, i32 b) { return _mm512_add_epi32(a, b); }

// max |x| over two vectors; a NaN or infinity among them is the result (their bits compare as largest).
inline float abs_peak(f32 a, f32 b) {
  const i32 mask = _mm512_set1_epi32(0x7FFFFFFF);
  i32 peak = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), mask),
                              _mm512_and_si512(_mm512_castps_si512(b), mask));
  int32_t bits = _mm512_reduce_max_epi32(peak);
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

inline bool any_nan(f32 a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }

// Per lane: x < limit ? yes : no; a NaN in x takes `no`.
inline f32 select_less(f32 x, f32 limit, f32 yes, f32 no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), no, yes);
}

// The compiler takes x for computed here: it cannot load it again for each use.
inline void keep_in_register(f32& x) { asm("" : "+v"(x)); }
inline void keep_in_register(i32& x) { asm("" : "+v"(x)); }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// To the second level of cache: more of them may be under way.
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// 2^n for integral n in [-126, 127], given as floats.
inline f32 exp2_int(f32 n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline f32 round_even(f32 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// t - floor(t), rounded once to nearest (vreduceps rounds down instead); of an infinity NaN.
inline f32 fraction(f32 t) {
  return sub(t, _mm512_roundscale_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
}

// p * 2^floor(t) for p in [1, 2] and t <= 0: 0 where t < -126, NaN where t or p is.
inline f32 scale_exp2(f32 p, f32 t) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, t);
}

// The nearest bfloat16 (ties to even, NaN stays NaN) in the low half of each lane, 0 in the high one.
inline i32 bf16_bits(f32 a) {
  const i32 bits = _mm512_castps_si512(a);
  const i32 odd = _mm512_and_si512(shift_right<16>(bits), _mm512_set1_epi32(1));
  const i32 nearest = shift_right<16>(iadd(iadd(bits, _mm512_set1_epi32(0x7FFF)), odd));
  const i32 quiet = _mm512_or_si512(shift_right<16>(bits), _mm512_set1_epi32(64));
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), nearest, quiet);
}

inline void store_line(void* p, i32 a) { _mm512_storeu_si512(p, a); }
// Every byte less Amount, modulo 256.
template <int Amount>
inline i32 minus_bytes(i32 line) {
  return _mm512_sub_epi8(line, _mm512_set1_epi8(char(Amount)));
}
inline void store_line_n(void* p, i32 a, int n) { _mm512_mask_storeu_epi32(p, __mmask16((1u << n) - 1), a); }

#if defined(__AVX512BF16__)
// Per lane: acc + a's high half * b's + a's low half * b's, of bfloat16. Rounded twice, denormals are 0.
inline f32 dot_pairs(f32 acc, i32 a, i32 b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

// 32 floats as bfloat16, in order: lane i holds values 2i (low half) and 2i + 1.
inline i32 bf16_pairs(f32 first, f32 second) { return (i32)_mm512_cvtne2ps_pbh(second, first); }
#endif

}  // namespace penstock::PENSTOCK_ISA
