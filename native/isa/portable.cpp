// Kernels for whatever the compiler was asked to build for: any architecture.
#define PENSTOCK_ISA portable
#include "simd/portable.h"
#include "simd/f64.h"

#include "core/kernels.h"

namespace penstock::portable {
#include "kernels/all.inl"
}  // namespace penstock::portable

namespace penstock {
const KernelTable* portable_kernels() {
  static constexpr KernelTable table = portable::make_table("portable");
  return &table;
}
}  // namespace penstock
