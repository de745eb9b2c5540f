// Whole numbers modulo 2^k, bit-sliced. Sizes are checked in bnncore/secure/ring.py. The lock of the interpreter is
// released meanwhile.
#include <nanobind/ndarray.h>

#include "bindings.h"
#include "bnncore/ring.h"

namespace nb = nanobind;

namespace bitfleet {

namespace {

using Planes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstPlanes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstValues = nb::ndarray<nb::numpy, const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

}  // namespace

void bind_ring(nb::module_& m) {
  m.def("ring_add", [](Planes sum, ConstPlanes other, int bits, bool negative) {
    const size_t blocks = sum.shape(0) / (kRingPlane * static_cast<size_t>(bits));
    const nb::gil_scoped_release released;
    (negative ? ring_subtract : ring_add)(sum.data(), other.data(), bits, blocks);
  });
  m.def("ring_write", [](ConstValues values, int bits, Planes planes) {
    const nb::gil_scoped_release released;
    ring_write(values.data(), values.shape(0), bits, planes.data());
  });
  m.def("ring_read", [](ConstPlanes planes, int bits, Values values) {
    const nb::gil_scoped_release released;
    ring_read(planes.data(), values.shape(0), bits, values.data());
  });
}

}  // namespace bitfleet
