// Attention over pages for Python tests, see bind_attention.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace penstock {

void bind_attention(nanobind::module_& m);

}  // namespace penstock
