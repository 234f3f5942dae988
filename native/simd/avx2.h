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

constexpr int kTileRows = 4;      // most rows of a matrix product's tile that fit the registers
constexpr int kGroupsAtOnce = 1;  // groups of Q4's pairs whose sums fit them too

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

template <int Bits>
inline i32 shift_left(i32 x) {
  return {_mm256_slli_epi32(x.a, Bits), _mm256_slli_epi32(x.b, Bits)};
}
template <int Bits>
inline i32 shift_right(i32 x) {
  return {_mm256_srli_epi32(x.a, Bits), _mm256_srli_epi32(x.b, Bits)};
}
inline i32 keep_bits(i32 x, uint32_t mask) { return iand(x, iset1(int32_t(mask))); }
inline i32 join_bits(i32 x, i32 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
// Every byte, 0..15, becomes values[byte].
inline i32 look_up(i32 line, const uint8_t* values) {
  const __m256i table = _mm256_broadcastsi128_si256(half_line(values));
  return {_mm256_shuffle_epi8(table, line.a), _mm256_shuffle_epi8(table, line.b)};
}
inline f32 load_u8(const uint8_t* p) {
  const __m128i bytes = half_line(p);
  return to_float({_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))});
}

// The two bfloat16 of every lane as floats: the low half's, the high half's.
inline f32 bf16_low(i32 x) { return as_float({_mm256_slli_epi32(x.a, 16), _mm256_slli_epi32(x.b, 16)}); }
inline f32 bf16_high(i32 x) { return as_float(iand(x, iset1(int32_t(0xFFFF0000)))); }

// The four bytes at `a` in every lane.
inline __m256i four_of(const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

// Dot products of one group of 32 inputs; what they promise is in simd/avx512.h.
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)

// Per lane: acc + sum of its four unsigned bytes times four signed ones. AVX512-VNNI's 256-bit form is
// another encoding of the same operation: by it, machines without AVX-VNNI can test this file.
inline __m256i dot_half(__m256i acc, __m256i line, __m256i a) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(acc, line, a);
#else
  return _mm256_dpbusd_epi32(acc, line, a);
#endif
}
using NibbleDot = i32;
constexpr float kHighScale = 1.0f / 16.0f;
inline i32 low_nibbles(i32 line) { return iand(line, iset1(0x0F0F0F0F)); }
inline i32 high_nibbles(i32 line) { return iand(line, iset1(int32_t(0xF0F0F0F0))); }
inline i32 dot_bytes(i32 acc, i32 line, const int8_t* a) {
  const __m256i four = four_of(a);
  return {dot_half(acc.a, line.a, four), dot_half(acc.b, line.b, four)};
}
inline i32 byte_start(int32_t start) { return iset1(start); }
inline NibbleDot nibble_start() { return iset1(kMagicBits); }
inline NibbleDot dot_nibbles(NibbleDot acc, i32 line, const int8_t* a) { return dot_bytes(acc, line, a); }
inline i32 nibble_total(NibbleDot dot) { return dot; }
inline i32 dot_small(i32 acc, i32 line, const int8_t* a) { return dot_bytes(acc, line, a); }

#else

// Sums of pairs in int16: the 16 products that meet in one are at most 16 * 15 * 127 = 30480.
struct NibbleDot {
  __m256i a, b;
};
constexpr float kHighScale = 1.0f;
inline i32 low_nibbles(i32 line) { return iand(line, iset1(0x0F0F0F0F)); }
inline i32 high_nibbles(i32 line) {
  return low_nibbles({_mm256_srli_epi16(line.a, 4), _mm256_srli_epi16(line.b, 4)});
}
inline NibbleDot nibble_start() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline NibbleDot dot_nibbles(NibbleDot acc, i32 line, const int8_t* a) {
  const __m256i four = four_of(a);
  return {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(line.a, four)),
          _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(line.b, four))};
}
inline i32 nibble_total(NibbleDot dot) {
  const __m256i one = _mm256_set1_epi16(1);
  return iadd(iset1(kMagicBits), {_mm256_madd_epi16(dot.a, one), _mm256_madd_epi16(dot.b, one)});
}

// A pair of products of bytes up to 63 is at most 2 * 63 * 127.
inline i32 dot_small(i32 acc, i32 line, const int8_t* a) {
  const __m256i four = four_of(a), one = _mm256_set1_epi16(1);
  return iadd(acc, {_mm256_madd_epi16(_mm256_maddubs_epi16(line.a, four), one),
                    _mm256_madd_epi16(_mm256_maddubs_epi16(line.b, four), one)});
}

// Signed bytes, so that a pair of products is at most 2 * 128 * 127 and int16 holds it: |q| times a with
// q's sign. The sum starts without the correction for q + 128.
inline i32 byte_start(int32_t) { return iset1(kMagicBits); }
inline i32 dot_bytes(i32 acc, i32 line, const int8_t* a) {
  const __m256i four = four_of(a), flip = _mm256_set1_epi8(-128), one = _mm256_set1_epi16(1);
  auto half = [&](__m256i sum, __m256i bytes) {
    const __m256i q = _mm256_xor_si256(bytes, flip);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(four, q));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, one));
  };
  return {half(acc.a, line.a), half(acc.b, line.b)};
}

#endif

// dot * d, rounded once, from total = kMagicBits + dot and c = -kMagic * d.
inline f32 scale_total(i32 total, f32 d, f32 c) { return fma(as_float(total), d, c); }

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

// Where registers are few, the compiler may load again.
template <class T>
inline void keep_in_register(T&) {}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// To the second level of cache: more of them may be under way.
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// 2^n for integral n in [-126, 127], given as floats.
inline f32 exp2_int(f32 n) {
  const i32 bits = iadd(round_to_int(n), iset1(127));
  return as_float({_mm256_slli_epi32(bits.a, 23), _mm256_slli_epi32(bits.b, 23)});
}
inline f32 round_even(f32 x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}

// t - floor(t), rounded once; of an infinity anything.
inline f32 fraction(f32 t) {
  const __m256 low = _mm256_set1_ps(-127.0f);
  auto half = [&](__m256 x) {
    x = _mm256_max_ps(low, x);
    return _mm256_sub_ps(x, _mm256_floor_ps(x));
  };
  return {half(t.a), half(t.b)};
}

// p * 2^floor(t) for p in [1, 2] and t <= 0: 0 where t < -126, NaN where t or p is.
inline f32 scale_exp2(f32 p, f32 t) {
  const f32 low = set1(-126.0f), floor = max(low, {_mm256_floor_ps(t.a), _mm256_floor_ps(t.b)});
  return select_less(t, low, zero(), mul(p, exp2_int(floor)));
}

// The nearest bfloat16 (ties to even, NaN stays NaN) in the low half of each lane, 0 in the high one.
inline i32 bf16_bits(f32 x) {
  const i32 bits = as_int(x), odd = iand(shift_right<16>(bits), iset1(1));
  const i32 nearest = shift_right<16>(iadd(iadd(bits, iset1(0x7FFF)), odd)), top = shift_right<16>(bits);
  auto half = [](__m256 v, __m256i plain, __m256i cut) {
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(plain, _mm256_or_si256(cut, _mm256_set1_epi32(64)), nan);
  };
  return {half(x.a, nearest.a, top.a), half(x.b, nearest.b, top.b)};
}

inline void store_line_n(void* p, i32 x, int n) {
  int* line = static_cast<int*>(p);
  _mm256_maskstore_epi32(line, mask_of(n), x.a);
  _mm256_maskstore_epi32(line + 8, mask_of(n - 8), x.b);
}

}  // namespace penstock::PENSTOCK_ISA
