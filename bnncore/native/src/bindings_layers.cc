// What bnncore.nn computes natively: convolutions on bits, and batch norm's passes over rows. Shapes are checked in
// bnncore/sign_maps.py and bnncore/norm_rows.py. The lock of the interpreter is released meanwhile.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "bindings.h"
#include "bnncore/norm_rows.h"
#include "bnncore/sign_maps.h"

namespace nb = nanobind;

namespace bitfleet {

namespace {

template <typename T, size_t kDims>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Pair = std::pair<int, int>;

BlockSpec convolution(std::tuple<int, int, int> map, int out_channels, Pair kernel, int stride, Pair padding) {
  BlockSpec conv{};
  std::tie(conv.in_height, conv.in_width, conv.in_channels) = map;
  conv.out_channels = out_channels;
  std::tie(conv.kernel_height, conv.kernel_width) = kernel;
  conv.stride = stride;
  std::tie(conv.pad_height, conv.pad_width) = padding;
  conv.conv_height = (conv.in_height + 2 * conv.pad_height - conv.kernel_height) / stride + 1;
  conv.conv_width = (conv.in_width + 2 * conv.pad_width - conv.kernel_width) / stride + 1;
  conv.pool = Pool::kNone;
  conv.pool_height = conv.pool_width = 1;
  return conv;
}

template <typename Y>
void add_rows(Array<const Y, 2> y, Array<const float, 2> grad, std::optional<Array<const float, 1>> mask_from,
              std::optional<Array<const float, 1>> mask_to, Array<const float, 1> mean_low,
              Array<const float, 1> mean_high, Array<const float, 1> mean, int threads, Array<uint8_t, 2> codes,
              Array<double, 1> grad_sum, Array<double, 1> moment, Array<int64_t, 1> above, Array<int64_t, 1> below) {
  const RowThresholds thresholds{mask_from ? mask_from->data() : nullptr, mask_to ? mask_to->data() : nullptr,
                                 mean_low.data(), mean_high.data(), mean.data()};
  const nb::gil_scoped_release released;
  add_gradient_rows(y.data(), grad.data(), y.shape(0), y.shape(1), thresholds, threads, codes.data(),
                    {grad_sum.data(), moment.data(), above.data(), below.data()});
}

template <typename Y>
void bind_add_rows(nb::module_& m, const char* name) {
  m.def(name, &add_rows<Y>, nb::arg("y"), nb::arg("grad"), nb::arg("mask_from").none(), nb::arg("mask_to").none(),
        nb::arg("mean_low"), nb::arg("mean_high"), nb::arg("mean"), nb::arg("threads"), nb::arg("codes"),
        nb::arg("grad_sum"), nb::arg("moment"), nb::arg("above"), nb::arg("below"));
}

}  // namespace

void bind_layers(nb::module_& m) {
  m.def(
      "pack_sign_weights",
      [](const std::string& isa, Array<const int8_t, 3> weights, Array<uint64_t, 2> packed) {
        BlockSpec conv{};
        conv.out_channels = static_cast<int>(weights.shape(0));
        conv.kernel_height = static_cast<int>(weights.shape(1));
        conv.kernel_width = 1;
        conv.in_channels = static_cast<int>(weights.shape(2));
        const nb::gil_scoped_release released;
        pack_sign_weights(kernels_for(isa), conv, weights.data(), packed.data());
      },
      nb::arg("isa"), nb::arg("weights"), nb::arg("packed"));
  m.def(
      "multiply_sign_maps",
      [](const std::string& isa, Array<const uint8_t, 2> maps, std::tuple<int, int, int> map, Pair kernel, int stride,
         Pair padding, Array<const uint64_t, 2> packed, int threads, Array<int16_t, 4> products) {
        const BlockSpec conv = convolution(map, static_cast<int>(packed.shape(0)), kernel, stride, padding);
        const nb::gil_scoped_release released;
        multiply_sign_maps(kernels_for(isa), conv, maps.data(), maps.shape(1), static_cast<int>(maps.shape(0)),
                           packed.data(), threads, products.data());
      },
      nb::arg("isa"), nb::arg("maps"), nb::arg("map"), nb::arg("kernel"), nb::arg("stride"), nb::arg("padding"),
      nb::arg("packed"), nb::arg("threads"), nb::arg("products"));
  m.def(
      "row_statistics",
      [](Array<const int16_t, 2> y, int threads, Array<int64_t, 1> sum, Array<double, 1> deviation) {
        const nb::gil_scoped_release released;
        row_statistics(y.data(), y.shape(0), y.shape(1), threads, sum.data(), deviation.data());
      },
      nb::arg("y"), nb::arg("threads"), nb::arg("sum"), nb::arg("deviation"));
  bind_add_rows<int16_t>(m, "add_gradient_rows16");
  bind_add_rows<float>(m, "add_gradient_rows_float");
  m.def(
      "apply_gradient_rows",
      [](Array<float, 2> grad, Array<const uint8_t, 2> codes, bool is_masked, Array<const float, 1> offset,
         Array<const float, 1> slope, Array<const float, 1> inverse, int threads) {
        const nb::gil_scoped_release released;
        apply_gradient_rows(grad.data(), codes.data(), grad.shape(0), grad.shape(1), is_masked, offset.data(),
                            slope.data(), inverse.data(), threads);
      },
      nb::arg("grad"), nb::arg("codes"), nb::arg("is_masked"), nb::arg("offset"), nb::arg("slope"), nb::arg("inverse"),
      nb::arg("threads"));
}

}  // namespace bitfleet
