// Kernels for AVX-512 with VNNI and bfloat16 dot products: those of avx512, with attention over bfloat16
// keys and values by dot products. Nothing else may be compiled here (see isa/avx512.cpp).
#define PENSTOCK_ISA avx512_bf16
#include "simd/avx512.h"
#include "simd/f64.h"

#include "core/kernels.h"

namespace penstock::avx512_bf16 {
#include "kernels/all.inl"
}  // namespace penstock::avx512_bf16

namespace penstock {
const KernelTable* avx512_bf16_kernels() {
  static constexpr KernelTable table = avx512_bf16::make_table("avx512_bf16");
  return &table;
}
}  // namespace penstock
