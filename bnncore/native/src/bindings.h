#pragma once

#include <nanobind/nanobind.h>

namespace bitfleet {

void bind_kernels(nanobind::module_& m);
void bind_float_engines(nanobind::module_& m);
void bind_residual_engine(nanobind::module_& m);
void bind_layers(nanobind::module_& m);
void bind_ring(nanobind::module_& m);
void bind_signs(nanobind::module_& m);

}  // namespace bitfleet
