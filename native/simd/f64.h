// Vectors of doubles as GNU vectors of the registers' width; with their int64, for all instruction sets.
// The few kernels that need doubles work lane by lane, so that no result depends on the width.
#pragma once

#include <cstdint>

namespace penstock::PENSTOCK_ISA {

#if defined(__AVX512F__)
constexpr int kDoubles = 8;
#elif defined(__AVX__)
constexpr int kDoubles = 4;
#else
constexpr int kDoubles = 2;
#endif

using f64 = double __attribute__((vector_size(8 * kDoubles)));
using i64 = int64_t __attribute__((vector_size(8 * kDoubles)));
using half32 = float __attribute__((vector_size(4 * kDoubles)));

inline f64 widen(const float* p) {
  half32 v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, f64);
}
inline void store(int64_t* p, i64 v) { __builtin_memcpy(p, &v, sizeof v); }
inline int64_t hsum(i64 v) {
  int64_t sum = 0;
  for (int i = 0; i < kDoubles; ++i) sum += v[i];
  return sum;
}

// a * b + c, rounded once where the target has the instruction.
inline f64 fma(f64 a, f64 b, f64 c) {
#if defined(__AVX512F__)
  return (f64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (f64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (f64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

}  // namespace penstock::PENSTOCK_ISA
