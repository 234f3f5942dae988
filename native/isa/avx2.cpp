// Kernels for AVX2 with FMA and F16C. Nothing else may be compiled here (see isa/avx512.cpp).
#define PENSTOCK_ISA avx2
#include "simd/avx2.h"
#include "simd/f64.h"

#include "core/kernels.h"

namespace penstock::avx2 {
#include "kernels/all.inl"
}  // namespace penstock::avx2

namespace penstock {
const KernelTable* avx2_kernels() {
  static constexpr KernelTable table = avx2::make_table("avx2");
  return &table;
}
}  // namespace penstock
