// Encoders for Python, see bind_encoder.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace penstock {

void bind_encoder(nanobind::module_& m);

}  // namespace penstock
