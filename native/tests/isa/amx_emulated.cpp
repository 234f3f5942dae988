// The kernels of isa/amx.cpp with tiles that are plain arrays: their logic where no processor has tiles.
#define PENSTOCK_ISA amx_emulated
#define PENSTOCK_EMULATE_TILES
#include "simd/avx512.h"
#include "simd/f64.h"
#include "simd/tiles.h"

#include "core/kernels.h"

namespace penstock::amx_emulated {
#include "kernels/all.inl"
#include "kernels/linear_tiles.inl"
}  // namespace penstock::amx_emulated

namespace penstock {
const KernelTable* amx_emulated_kernels();
const KernelTable* amx_emulated_kernels() {
  static constexpr KernelTable table = amx_emulated::with_tiles(amx_emulated::make_table("amx_emulated"));
  return &table;
}
}  // namespace penstock
