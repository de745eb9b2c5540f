#pragma once

#include <nanobind/nanobind.h>

namespace bitfleet {

void bind_kernels(nanobind::module_& m);

}  // namespace bitfleet
