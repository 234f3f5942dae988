// Single kernels for Python tests, see bind_kernels.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace penstock {

void bind_kernels(nanobind::module_& m);

}  // namespace penstock
