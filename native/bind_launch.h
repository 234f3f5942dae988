#pragma once

#include <nanobind/nanobind.h>

namespace penstock {

void bind_launch(nanobind::module_& m);

}  // namespace penstock
