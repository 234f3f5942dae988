// Kernels for AMX: those of avx512, with linear layers by tiles. Nothing else may be compiled here (see
// isa/avx512.cpp).
#define PENSTOCK_ISA amx
#include "simd/avx512.h"
#include "simd/f64.h"
#include "simd/tiles.h"

#include "core/kernels.h"

namespace penstock::amx {
#include "kernels/all.inl"
#include "kernels/linear_tiles.inl"
}  // namespace penstock::amx

namespace penstock {
const KernelTable* amx_kernels() {
  static constexpr KernelTable table = amx::with_tiles(amx::make_table("amx"));
  return &table;
}
}  // namespace penstock
