// One-bit differences. Arrays are [rows][count] or [rows][row_bytes]; shapes are checked in bnncore/codec/signs.py. The
// lock of the interpreter is released meanwhile.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "bnncore/dispatch.h"
#include "bnncore/sparse_bits.h"

namespace nb = nanobind;

namespace bitfleet {

namespace {

template <typename T>
using Matrix = nb::ndarray<nb::numpy, T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Vector = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bits = Matrix<const uint8_t>;

template <typename T>
T* pointer(const std::optional<Matrix<T>>& array) {
  return array ? array->data() : nullptr;
}

template <typename T>
int extent(const Matrix<T>& array, size_t axis) {
  return static_cast<int>(array.shape(axis));
}

void encode(const std::string& isa, const SignSource& source, const Matrix<const int8_t>& replica, size_t sent,
            const Vector<uint16_t>& scales, const Matrix<uint8_t>& bits, const std::optional<Matrix<uint8_t>>& mask,
            int8_t* remaining) {
  const SignKernels& kernels = *kernels_for(isa).signs;
  const nb::gil_scoped_release released;
  encode_tensor(kernels, source, extent(replica, 0), extent(replica, 1), sent, scales.data(), bits.data(),
                pointer(mask), remaining);
}

}  // namespace

void bind_signs(nb::module_& m) {
  m.def(
      "encode_signs",
      [](const std::string& isa, Matrix<const int8_t> latent, Matrix<const int8_t> replica,
         std::optional<Matrix<const int8_t>> error, size_t sent, Vector<uint16_t> scales, Matrix<uint8_t> bits,
         std::optional<Matrix<uint8_t>> mask, Matrix<int8_t> remaining) {
        const SignSource source{latent.data(), pointer(error), nullptr, replica.data()};
        encode(isa, source, replica, sent, scales, bits, mask, remaining.data());
      },
      nb::arg("isa"), nb::arg("latent"), nb::arg("replica"), nb::arg("error").none(), nb::arg("sent"),
      nb::arg("scales"), nb::arg("bits"), nb::arg("mask").none(), nb::arg("remaining"));
  m.def(
      "encode_steps",
      [](const std::string& isa, Matrix<const float> master, Matrix<const int8_t> replica, size_t sent,
         Vector<uint16_t> scales, Matrix<uint8_t> bits, std::optional<Matrix<uint8_t>> mask) {
        encode(isa, {nullptr, nullptr, master.data(), replica.data()}, replica, sent, scales, bits, mask, nullptr);
      },
      nb::arg("isa"), nb::arg("master"), nb::arg("replica"), nb::arg("sent"), nb::arg("scales"), nb::arg("bits"),
      nb::arg("mask").none());
  m.def(
      "apply_signs",
      [](const std::string& isa, Vector<const uint16_t> scales, Bits bits, std::optional<Bits> mask,
         Matrix<int8_t> replica) {
        const SignKernels& kernels = *kernels_for(isa).signs;
        const nb::gil_scoped_release released;
        for (size_t r = 0; r < replica.shape(0); ++r) {
          kernels.apply_row(replica.data() + r * replica.shape(1), bits.data() + r * bits.shape(1),
                            mask ? mask->data() + r * bits.shape(1) : nullptr, extent(replica, 1), scales.data()[r]);
        }
      },
      nb::arg("isa"), nb::arg("scales"), nb::arg("bits"), nb::arg("mask").none(), nb::arg("replica"));
  m.def(
      "expand_signs",
      [](const std::string& isa, Vector<const uint16_t> scales, Bits bits, std::optional<Bits> mask,
         Matrix<int32_t> values) {
        const SignKernels& kernels = *kernels_for(isa).signs;
        const nb::gil_scoped_release released;
        for (size_t r = 0; r < values.shape(0); ++r) {
          kernels.expand_row(bits.data() + r * bits.shape(1), mask ? mask->data() + r * bits.shape(1) : nullptr,
                             extent(values, 1), scales.data()[r], values.data() + r * values.shape(1));
        }
      },
      nb::arg("isa"), nb::arg("scales"), nb::arg("bits"), nb::arg("mask").none(), nb::arg("values"));
  m.def("fold_signs",
        [](Matrix<int64_t> sums, const std::vector<Vector<const uint16_t>>& scales, const std::vector<Bits>& bits,
           const std::vector<std::optional<Bits>>& masks, const std::vector<int64_t>& weights) {
          std::vector<SignTerm> terms;
          for (size_t j = 0; j < bits.size(); ++j) {
            terms.push_back({scales[j].data(), bits[j].data(), pointer(masks[j]), weights[j]});
          }
          const nb::gil_scoped_release released;
          for (size_t first = 0; first < terms.size(); first += kFoldTerms) {
            const size_t some = std::min(terms.size() - first, size_t{kFoldTerms});
            fold_signs(sums.data(), terms.data() + first, static_cast<int>(some), extent(sums, 0), extent(sums, 1));
          }
        });
  m.def("gather_bits", [](Vector<const uint8_t> bits, Vector<const uint8_t> mask, Vector<uint8_t> gathered) {
    const nb::gil_scoped_release released;
    gather_bits(bits.data(), mask.data(), mask.shape(0), gathered.data());
  });
  m.def("scatter_bits", [](Vector<const uint8_t> gathered, Vector<const uint8_t> mask, Vector<uint8_t> bits) {
    const nb::gil_scoped_release released;
    scatter_bits(gathered.data(), mask.data(), mask.shape(0), bits.data());
  });
}

}  // namespace bitfleet
