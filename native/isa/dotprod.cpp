// Kernels for aarch64 with integer dot products (Armv8.2). Nothing else may be compiled here (see
// isa/avx512.cpp).
#define PENSTOCK_ISA dotprod
#include "simd/portable.h"
#include "simd/f64.h"

#include "core/kernels.h"

namespace penstock::dotprod {
#include "kernels/all.inl"
}  // namespace penstock::dotprod

namespace penstock {
const KernelTable* dotprod_kernels() {
  static constexpr KernelTable table = dotprod::make_table("dotprod");
  return &table;
}
}  // namespace penstock
