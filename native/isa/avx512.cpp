// Kernels for AVX-512 with VNNI. Nothing but these kernels may be compiled here: an inline function of
// a standard header would reach other translation units with instructions that their machine lacks.
#define PENSTOCK_ISA avx512
#include "simd/avx512.h"
#include "simd/f64.h"

#include "core/kernels.h"

namespace penstock::avx512 {
#include "kernels/all.inl"
}  // namespace penstock::avx512

namespace penstock {
const KernelTable* avx512_kernels() {
  static constexpr KernelTable table = avx512::make_table("avx512");
  return &table;
}
}  // namespace penstock
