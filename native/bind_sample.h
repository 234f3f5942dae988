// The sampler for Python, see bind_sample.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace penstock {

void bind_sample(nanobind::module_& m);

}  // namespace penstock
