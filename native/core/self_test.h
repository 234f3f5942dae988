// Whether kernels that were never run on hardware do there what they do elsewhere.
#pragma once

#include "core/kernels.h"

namespace penstock {

// A few small products of every quantized form, the same bits by both.
bool same_products(const KernelTable& kernels, const KernelTable& sure);

}  // namespace penstock
