// Vectors of 16 floats and 16 int32 as four GNU vectors of 128 bits, which GCC and Clang map to SSE2, NEON
// or scalar code: the names of simd/avx512.h for any little-endian architecture.
//
// max and min return the second where one is NaN, as x86 does. fma rounds once where the target has the
// instruction, else twice: deterministic either way, but then not bit-equal to the other instruction sets.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>

#include "core/types.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the panels of native/core/types.h are little-endian"
#endif

namespace penstock::PENSTOCK_ISA {

using float4 = float __attribute__((vector_size(16)));
using int4 = int32_t __attribute__((vector_size(16)));
using uint4 = uint32_t __attribute__((vector_size(16)));  // wraps; its casts keep the bits
using short8 = int16_t __attribute__((vector_size(16)));

struct f32 {
  float4 part[4];
};
struct i32 {
  uint4 part[4];
};

// Most rows of a matrix product's tile that fit the registers.
#if defined(__aarch64__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = 1;
#endif
constexpr int kGroupsAtOnce = 1;  // groups of Q4's pairs whose sums fit them too

// op(0), …, op(3), written out: a loop over the parts would keep them in memory.
template <typename Op>
inline f32 floats(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}
template <typename Op>
inline i32 ints(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}

inline float4 all(float x) { return float4{x, x, x, x}; }
inline uint4 all_bits(uint32_t x) { return uint4{x, x, x, x}; }

template <typename Vector>
inline Vector load_part(const void* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline f32 load(const float* p) {
  return floats([&](int i) { return load_part<float4>(p + 4 * i); });
}
inline void store(float* p, f32 v) { __builtin_memcpy(p, &v, sizeof v); }
inline f32 load_n(const float* p, int n) {
  float some[16] = {};
  __builtin_memcpy(some, p, n * sizeof(float));
  return load(some);
}
inline void store_n(float* p, f32 v, int n) { __builtin_memcpy(p, &v, n * sizeof(float)); }
inline f32 set1(float x) { return {{all(x), all(x), all(x), all(x)}}; }
inline f32 zero() { return set1(0.0f); }
inline f32 add(f32 a, f32 b) {
  return floats([&](int i) { return a.part[i] + b.part[i]; });
}
inline f32 sub(f32 a, f32 b) {
  return floats([&](int i) { return a.part[i] - b.part[i]; });
}
inline f32 mul(f32 a, f32 b) {
  return floats([&](int i) { return a.part[i] * b.part[i]; });
}
inline f32 div(f32 a, f32 b) {
  return floats([&](int i) { return a.part[i] / b.part[i]; });
}
inline float4 fma_part(float4 a, float4 b, float4 c) {
#if defined(__FMA__)
  return _mm_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return float4(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#elif defined(__FP_FAST_FMAF)
  return float4{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]),
                __builtin_fmaf(a[2], b[2], c[2]), __builtin_fmaf(a[3], b[3], c[3])};
#else
  return a * b + c;
#endif
}
inline f32 fma(f32 a, f32 b, f32 c) {
  return floats([&](int i) { return fma_part(a.part[i], b.part[i], c.part[i]); });
}
inline float4 max_part(float4 a, float4 b) { return a > b ? a : b; }
inline f32 max(f32 a, f32 b) {
  return floats([&](int i) { return max_part(a.part[i], b.part[i]); });
}
inline f32 min(f32 a, f32 b) {
  return floats([&](int i) { return a.part[i] < b.part[i] ? a.part[i] : b.part[i]; });
}

inline i32 izero() {
  return ints([](int) { return all_bits(0); });
}
inline i32 iset1(int32_t x) {
  return ints([&](int) { return all_bits(uint32_t(x)); });
}
inline i32 iadd(i32 a, i32 b) {
  return ints([&](int i) { return a.part[i] + b.part[i]; });
}
inline i32 iand(i32 a, uint32_t mask) {
  return ints([&](int i) { return a.part[i] & all_bits(mask); });
}
inline f32 as_float(i32 a) {
  return floats([&](int i) { return float4(a.part[i]); });
}
inline i32 as_int(f32 a) {
  return ints([&](int i) { return uint4(a.part[i]); });
}
inline f32 to_float(i32 a) {
  return floats([&](int i) { return __builtin_convertvector(int4(a.part[i]), float4); });
}

inline f32 abs(f32 a) { return as_float(iand(as_int(a), 0x7FFFFFFF)); }

inline float hmax(f32 a) {
  float4 v = max_part(max_part(a.part[0], a.part[2]), max_part(a.part[1], a.part[3]));
  const float x = v[0] > v[2] ? v[0] : v[2], y = v[1] > v[3] ? v[1] : v[3];
  return x > y ? x : y;
}

// Halves are added until one lane is left.
inline float hsum(f32 a) {
  float4 v = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
  return (v[0] + v[2]) + (v[1] + v[3]);
}
inline int32_t hsum(i32 a) {
  uint4 v = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
  return int32_t((v[0] + v[2]) + (v[1] + v[3]));
}

inline int4 lanes_of(int part) {
  const int first = 4 * part;
  return int4{first, first + 1, first + 2, first + 3};
}

// Lanes i with first + i in [low, high) keep `a`, the others take `other`.
inline f32 keep_range(f32 a, int first, int low, int high, f32 other) {
  return floats([&](int i) {
    const int4 lane = lanes_of(i) + first;
    return ((lane >= low) & (lane < high)) ? a.part[i] : other.part[i];
  });
}

// Exact: the exponent is moved by a product with 2^112, which also makes subnormals normal.
inline f32 load_f16(const uint16_t* p) {
  return floats([&](int i) {
    const uint4 h = uint4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    const uint4 magnitude = h & 0x7FFF;
    const uint4 moved = uint4(float4(magnitude << 13) * 0x1p112f);
    const uint4 special = uint4(magnitude >= 0x7C00) & 0x7F800000;  // infinity and NaN
    return float4(moved | special | ((h & 0x8000) << 16));
  });
}
inline f32 load_bf16(const uint16_t* p) {
  return floats([&](int i) { return float4(uint4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]} << 16); });
}

inline i32 load_line(const void* p) {
  const uint8_t* line = static_cast<const uint8_t*>(p);
  return ints([&](int i) { return load_part<uint4>(line + 16 * i); });
}
inline i32 load_line_n(const void* p, int n) {
  int32_t some[16] = {};
  __builtin_memcpy(some, p, n * sizeof(int32_t));
  return load_line(some);
}

// To nearest, ties to even; NaN and what int32 does not hold give 0 or another value whose low byte is
// never used.
inline uint4 round_part(float4 a) {
#if defined(__SSE2__)
  return uint4(_mm_cvtps_epi32(a));
#elif defined(__aarch64__)
  return uint4(vcvtnq_s32_f32(float32x4_t(a)));
#else
  auto one = [](float x) {
    return x >= -0x1p31f && x < 0x1p31f ? uint32_t(int32_t(__builtin_rintf(x))) : uint32_t(0);
  };
  return uint4{one(a[0]), one(a[1]), one(a[2]), one(a[3])};
#endif
}
inline i32 round_to_int(f32 a) {
  return ints([&](int i) { return round_part(a.part[i]); });
}

template <int Bits>
inline i32 shift_left(i32 a) {
  return ints([&](int i) { return a.part[i] << Bits; });
}
template <int Bits>
inline i32 shift_right(i32 a) {
  return ints([&](int i) { return a.part[i] >> Bits; });
}
inline i32 keep_bits(i32 a, uint32_t mask) { return iand(a, mask); }
inline i32 join_bits(i32 a, i32 b) {
  return ints([&](int i) { return a.part[i] | b.part[i]; });
}
// Every byte, 0..15, becomes values[byte].
inline i32 look_up(i32 line, const uint8_t* values) {
  uint8_t bytes[64];
  __builtin_memcpy(bytes, &line, sizeof bytes);
  for (uint8_t& byte : bytes) byte = values[byte];
  return load_line(bytes);
}
inline f32 load_u8(const uint8_t* p) {
  return floats([&](int i) {
    const uint8_t* four = p + 4 * i;
    return __builtin_convertvector(int4{four[0], four[1], four[2], four[3]}, float4);
  });
}

// The two bfloat16 of every lane as floats: the low half's, the high half's.
inline f32 bf16_low(i32 a) {
  return floats([&](int i) { return float4(a.part[i] << 16); });
}
inline f32 bf16_high(i32 a) { return as_float(iand(a, 0xFFFF0000)); }

// Dot products of one group of 32 inputs; what they promise is in simd/avx512.h.
inline uint4 four_of(const int8_t* a) {
  uint32_t four;
  __builtin_memcpy(&four, a, 4);
  return all_bits(four);
}

using NibbleDot = i32;
constexpr float kHighScale = 1.0f;
inline i32 low_nibbles(i32 line) { return iand(line, 0x0F0F0F0F); }
inline i32 high_nibbles(i32 line) {
  return ints([&](int i) { return (line.part[i] >> 4) & 0x0F0F0F0F; });
}

#if defined(__ARM_FEATURE_DOTPROD)

// Signed bytes: nibbles are both, q + 128 becomes q.
inline uint4 dot_part(uint4 acc, uint4 line, uint4 four) {
  return uint4(vdotq_s32(int32x4_t(acc), int8x16_t(line), int8x16_t(four)));
}
inline i32 dot_signed(i32 acc, i32 line, const int8_t* a) {
  const uint4 four = four_of(a);
  return ints([&](int i) { return dot_part(acc.part[i], line.part[i], four); });
}
inline NibbleDot dot_nibbles(NibbleDot acc, i32 line, const int8_t* a) { return dot_signed(acc, line, a); }
inline i32 dot_bytes(i32 acc, i32 line, const int8_t* a) {
  return dot_signed(acc, ints([&](int i) { return line.part[i] ^ 0x80808080; }), a);
}
inline i32 byte_start(int32_t) { return iset1(kMagicBits); }

#else

// Sum of the two products of signed 16-bit halves of every lane.
inline uint4 pair_dot(uint4 a, uint4 b) {
#if defined(__SSE2__)
  return uint4(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
  const int4 products = int4(short8(a) * short8(b));  // unsigned bytes times signed ones fit int16
  return uint4(((products << 16) >> 16) + (products >> 16));
#endif
}

// Bytes 0 and 2 of every lane meet in one pair of 16 bits, bytes 1 and 3 in the other.
inline i32 dot_bytes(i32 acc, i32 line, const int8_t* a) {
  const uint4 four = four_of(a);
  const uint4 even = uint4(short8(short8(four) << 8) >> 8), odd = uint4(short8(four) >> 8);
  return ints([&](int i) {
    const uint4 bytes = line.part[i];
    return acc.part[i] + pair_dot(bytes & 0x00FF00FF, even) + pair_dot((bytes >> 8) & 0x00FF00FF, odd);
  });
}
inline NibbleDot dot_nibbles(NibbleDot acc, i32 line, const int8_t* a) { return dot_bytes(acc, line, a); }
inline i32 byte_start(int32_t start) { return iset1(start); }

#endif

inline NibbleDot nibble_start() { return iset1(kMagicBits); }
inline i32 nibble_total(NibbleDot dot) { return dot; }
inline i32 dot_small(i32 acc, i32 line, const int8_t* a) { return dot_nibbles(acc, line, a); }

// dot * d, rounded once, from total = kMagicBits + dot. Without fma, c = -kMagic * d cannot take the
// offset away in the same rounding; the integers can.
inline f32 scale_total(i32 total, f32 d, f32) { return mul(to_float(iadd(total, iset1(-kMagicBits))), d); }

// 16 int32 to 16 bytes, each its lowest byte.
inline void store_i8(int8_t* p, i32 a) {
  int32_t values[16];
  __builtin_memcpy(values, &a, sizeof values);
  for (int i = 0; i < 16; ++i) p[i] = int8_t(values[i]);
}

// max |x| over two vectors; a NaN or infinity among them is the result (their bits compare as largest).
inline float abs_peak(f32 a, f32 b) {
  auto largest = [](int4 x, int4 y) { return x > y ? x : y; };
  const i32 p = iand(as_int(a), 0x7FFFFFFF), q = iand(as_int(b), 0x7FFFFFFF);
  int4 v = largest(int4(p.part[0]), int4(q.part[0]));
  for (int i = 1; i < 4; ++i) v = largest(v, largest(int4(p.part[i]), int4(q.part[i])));
  int32_t bits = v[0];
  for (int i = 1; i < 4; ++i) bits = v[i] > bits ? v[i] : bits;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

inline bool any_nan(f32 a) {
  int4 broken = int4{};
  for (int i = 0; i < 4; ++i) broken |= a.part[i] != a.part[i];
  return (broken[0] | broken[1] | broken[2] | broken[3]) != 0;
}

// Per lane: x < limit ? yes : no; a NaN in x takes `no`.
inline f32 select_less(f32 x, f32 limit, f32 yes, f32 no) {
  return floats([&](int i) { return x.part[i] < limit.part[i] ? yes.part[i] : no.part[i]; });
}

// Where registers are few, the compiler may load again.
template <class T>
inline void keep_in_register(T&) {}

inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

// 2^n for integral n in [-126, 127], given as floats.
inline f32 exp2_int(f32 n) {
  return floats([&](int i) { return float4((round_part(n.part[i]) + 127) << 23); });
}

// Adding 1.5 * 2^23 leaves no bits for fractions; larger values have none.
inline f32 round_even(f32 a) {
  return floats([&](int i) {
    const float4 v = a.part[i];
    const float4 rounded = (v + kMagic) - kMagic;
    return (v > -0x1p22f) & (v < 0x1p22f) ? rounded : v;
  });
}

// t - floor(t), rounded once; of an infinity anything.
inline float4 floor_part(float4 a) {
  const float4 rounded = (a + kMagic) - kMagic;
  return rounded - (rounded > a ? all(1.0f) : all(0.0f));
}
inline f32 fraction(f32 t) {
  return floats([&](int i) {
    const float4 x = max_part(all(-127.0f), t.part[i]);
    return x - floor_part(x);
  });
}

// p * 2^floor(t) for p in [1, 2] and t <= 0: 0 where t < -126, NaN where t or p is.
inline f32 scale_exp2(f32 p, f32 t) {
  const f32 low = set1(-126.0f);
  const f32 floor = floats([&](int i) { return floor_part(max_part(all(-126.0f), t.part[i])); });
  return select_less(t, low, zero(), mul(p, exp2_int(floor)));
}

// The nearest bfloat16 (ties to even, NaN stays NaN) in the low half of each lane, 0 in the high one.
inline i32 bf16_bits(f32 a) {
  return ints([&](int i) {
    const uint4 bits = uint4(a.part[i]), top = bits >> 16;
    const uint4 nearest = (bits + 0x7FFF + (top & 1)) >> 16;
    return uint4(a.part[i] == a.part[i] ? int4(nearest) : int4(top | 64));
  });
}

inline void store_line_n(void* p, i32 a, int n) { __builtin_memcpy(p, &a, n * 4); }

}  // namespace penstock::PENSTOCK_ISA
