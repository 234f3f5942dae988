// Kernels for AVX-VNNI: AVX2 with integer dot products. Nothing else may be compiled here (see
// isa/avx512.cpp).
#define PENSTOCK_ISA avxvnni
#include "simd/avx2.h"
#include "simd/f64.h"

#include "core/kernels.h"

namespace penstock::avxvnni {
#include "kernels/all.inl"
}  // namespace penstock::avxvnni

namespace penstock {
const KernelTable* avxvnni_kernels() {
  static constexpr KernelTable table = avxvnni::make_table("avxvnni");
  return &table;
}
}  // namespace penstock
