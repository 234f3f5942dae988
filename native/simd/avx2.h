// Vectors of 16 floats and 16 int32 as two halves of AVX2 with FMA and F16C, and of AVX-VNNI where that is
// compiled for: the names of simd/avx512.h, with the same results to the bit.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/types.h"

namespace penstock::PENSTOCK_ISA {

struct f32 {
  __m256 a, b;
};
struct i32 {
  __m256i a, b;
};

constexpr int kTileRows = 4;  // most rows of a matrix product's tile that fit the registers

// First n of 8 lanes set, n clamped to 0..8.
inline __m256i mask_of(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
inline __m128i half_line(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline f32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline f32 load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, mask_of(n)), _mm256_maskload_ps(p + 8, mask_of(n - 8))};
}
inline void store(float* p, f32 v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
inline void store_n(float* p, f32 v, int n) {
  _mm256_maskstore_ps(p, mask_of(n), v.a);
  _mm256_maskstore_ps(p + 8, mask_of(n - 8), v.b);
}
inline f32 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline f32 add(f32 x, f32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline f32 sub(f32 x, f32 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline f32 mul(f32 x, f32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline f32 div(f32 x, f32 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline f32 fma(f32 x, f32 y, f32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline f32 max(f32 x, f32 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline f32 min(f32 x, f32 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }

inline f32 as_float(i32 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline i32 as_int(f32 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline i32 izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline i32 iset1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline i32 iadd(i32 x, i32 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline i32 iand(i32 x, i32 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }

inline f32 abs(f32 x) { return as_float(iand(as_int(x), iset1(0x7FFFFFFF))); }

inline float hmax(f32 x) {
  __m256 y = _mm256_max_ps(x.a, x.b);
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

// Halves are added until one lane is left.
inline float hsum(f32 x) {
  __m256 y = _mm256_add_ps(x.a, x.b);
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline int32_t hsum(i32 x) {
  __m256i y = _mm256_add_epi32(x.a, x.b);
  __m128i c = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
  c = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xB1)));
}

// Lanes i with first + i in [low, high) keep `x`, the others take `other`.
inline f32 keep_range(f32 x, int first, int low, int high, f32 other) {
  auto half = [&](__m256 v, int start, __m256 instead) {
    const __m256i lane = _mm256_add_epi32(_mm256_set1_epi32(start), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane);
    const __m256i inside = _mm256_andnot_si256(before, _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane));
    return _mm256_blendv_ps(instead, v, _mm256_castsi256_ps(inside));
  };
  return {half(x.a, first, other.a), half(x.b, first + 8, other.b)};
}

inline f32 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(half_line(p)), _mm256_cvtph_ps(half_line(p + 8))}; }
inline f32 load_bf16(const uint16_t* p) {
  auto half = [](const uint16_t* q) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_line(q)), 16));
  };
  return {half(p), half(p + 8)};
}

inline i32 load_line(const void* p) {
  const __m256i* line = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(line), _mm256_loadu_si256(line + 1)};
}
inline i32 load_line_n(const void* p, int n) {
  const int* line = static_cast<const int*>(p);
  return {_mm256_maskload_epi32(line, mask_of(n)), _mm256_maskload_epi32(line + 8, mask_of(n - 8))};
}
inline f32 to_float(i32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
// To nearest, ties to even.
inline i32 round_to_int(f32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }

// The two bfloat16 of every lane as floats: the low half's, the high half's.
inline f32 bf16_low(i32 x) { return as_float({_mm256_slli_epi32(x.a, 16), _mm256_slli_epi32(x.b, 16)}); }
inline f32 bf16_high(i32 x) { return as_float(iand(x, iset1(int32_t(0xFFFF0000)))); }

// A matrix product's vectors: the 16 lanes of a panel in two parts.
constexpr int kParts = 2;
constexpr int kPartLanes = 16 / kParts;
constexpr int kPartBytes = 64 / kParts;
using fpart = __m256;
using ipart = __m256i;
inline ipart part_line(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline fpart part_f16(const uint16_t* p) { return _mm256_cvtph_ps(half_line(p)); }
inline fpart part_set1(float x) { return _mm256_set1_ps(x); }
inline void part_store(float* p, fpart v) { _mm256_storeu_ps(p, v); }
inline fpart mul(fpart x, fpart y) { return _mm256_mul_ps(x, y); }
inline fpart fma(fpart x, fpart y, fpart z) { return _mm256_fmadd_ps(x, y, z); }

// The four bytes at `a` in every lane.
inline ipart four_of(const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

// Dot products of one group of 32 inputs; what they promise is in simd/avx512.h.
inline ipart low_nibbles(ipart line) { return _mm256_and_si256(line, _mm256_set1_epi32(0x0F0F0F0F)); }

#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)

using NibbleDot = ipart;
constexpr float kHighScale = 1.0f / 16.0f;
inline ipart high_nibbles(ipart line) { return _mm256_and_si256(line, _mm256_set1_epi32(int32_t(0xF0F0F0F0))); }

// AVX512-VNNI's form for 256 bits is another encoding of the same operation: by it, machines without
// AVX-VNNI can test this file.
inline ipart dot_bytes(ipart acc, ipart line, const int8_t* a) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(acc, line, four_of(a));
#else
  return _mm256_dpbusd_epi32(acc, line, four_of(a));
#endif
}
inline ipart byte_start(int32_t start) { return _mm256_set1_epi32(start); }
inline NibbleDot nibble_start() { return _mm256_set1_epi32(kMagicBits); }
inline NibbleDot dot_nibbles(NibbleDot acc, ipart line, const int8_t* a) { return dot_bytes(acc, line, a); }
inline ipart low_total(NibbleDot dot) { return dot; }
inline ipart high_total(NibbleDot dot) { return dot; }

#else

// Sums of pairs in int16: the 16 products that meet in one are at most 16 * 15 * 127 = 30480.
using NibbleDot = ipart;
constexpr float kHighScale = 1.0f;
inline ipart high_nibbles(ipart line) { return low_nibbles(_mm256_srli_epi16(line, 4)); }
inline NibbleDot nibble_start() { return _mm256_setzero_si256(); }
inline NibbleDot dot_nibbles(NibbleDot acc, ipart line, const int8_t* a) {
  return _mm256_add_epi16(acc, _mm256_maddubs_epi16(line, four_of(a)));
}
inline ipart low_total(NibbleDot dot) {
  return _mm256_add_epi32(_mm256_set1_epi32(kMagicBits), _mm256_madd_epi16(dot, _mm256_set1_epi16(1)));
}
inline ipart high_total(NibbleDot dot) { return low_total(dot); }

// Signed bytes, so that a pair of products is at most 2 * 128 * 127 and int16 holds it: |q| times a with
// q's sign. The sum starts without the correction for q + 128.
inline ipart byte_start(int32_t) { return _mm256_set1_epi32(kMagicBits); }
inline ipart dot_bytes(ipart acc, ipart line, const int8_t* a) {
  const ipart q = _mm256_xor_si256(line, _mm256_set1_epi8(-128));
  const ipart pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(four_of(a), q));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#endif

// dot * d, rounded once, from total = kMagicBits + dot and c = -kMagic * d.
inline fpart scale_total(ipart total, fpart d, fpart c) { return fma(_mm256_castsi256_ps(total), d, c); }

// 16 int32 to 16 bytes, each its lowest byte.
inline void store_i8(int8_t* p, i32 x) {
  const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                       0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  auto half = [&](__m256i v) {
    v = _mm256_shuffle_epi8(v, low);
    return _mm_unpacklo_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  };
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi64(half(x.a), half(x.b)));
}

// max |x| over two vectors; a NaN or infinity among them is the result (their bits compare as largest).
inline float abs_peak(f32 x, f32 y) {
  const i32 mask = iset1(0x7FFFFFFF), p = iand(as_int(x), mask), q = iand(as_int(y), mask);
  const __m256i peak = _mm256_max_epi32(_mm256_max_epi32(p.a, q.a), _mm256_max_epi32(p.b, q.b));
  __m128i c = _mm_max_epi32(_mm256_castsi256_si128(peak), _mm256_extracti128_si256(peak, 1));
  c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0x4E));
  c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0xB1));
  return _mm_cvtss_f32(_mm_castsi128_ps(c));
}

inline bool any_nan(f32 x) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q),
                                         _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))) != 0;
}

// Per lane: x < limit ? yes : no; a NaN in x takes `no`.
inline f32 select_less(f32 x, f32 limit, f32 yes, f32 no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, limit.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, limit.b, _CMP_LT_OQ))};
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// 2^n for integral n in [-126, 127], given as floats.
inline f32 exp2_int(f32 n) {
  const i32 bits = iadd(round_to_int(n), iset1(127));
  return as_float({_mm256_slli_epi32(bits.a, 23), _mm256_slli_epi32(bits.b, 23)});
}
inline f32 round_even(f32 x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}

}  // namespace penstock::PENSTOCK_ISA
