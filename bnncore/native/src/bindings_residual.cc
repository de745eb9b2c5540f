// The Python face of residual networks.
#include <stdexcept>

#include "bindings.h"
#include "bindings_engine.h"
#include "bnncore/residual_engine.h"
#include "bnncore/standard_residual_engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitfleet {

void bind_residual_engine(nb::module_& m) {
  nb::class_<ResidualSpec>(m, "ResidualSpec")
      .def(
          "__init__",
          [](ResidualSpec* self, const BlockSpec& conv, bool relu, std::tuple<int, int> window,
             std::tuple<int, int> strides, std::tuple<int, int> pads, std::tuple<int, int> out_map,
             const std::string& second_norm, int limit, bool head_relu, const std::string& dense, int classes) {
            const auto [height, width] = window;
            const StemSpec stem{conv,
                                relu,
                                height > 0,
                                height,
                                width,
                                std::get<0>(strides),
                                std::get<1>(strides),
                                std::get<0>(pads),
                                std::get<1>(pads),
                                std::get<0>(out_map),
                                std::get<1>(out_map),
                                second_norm,
                                limit};
            new (self) ResidualSpec{stem, {}, head_relu, dense, classes};
          },
          nb::kw_only(), "conv"_a, "relu"_a, "window"_a, "strides"_a, "pads"_a, "out_map"_a, "second_norm"_a, "limit"_a,
          "head_relu"_a, "dense"_a, "classes"_a)
      .def(
          "add_unit",
          [](ResidualSpec& self, const BlockSpec& conv, bool approx, int limit, int stage) {
            self.units.push_back({conv, approx, limit, stage, false, {}});
          },
          "conv"_a, "approx"_a, "limit"_a, "stage"_a)
      .def(
          "add_shortcut",
          [](ResidualSpec& self, const BlockSpec& conv, int pool_height, int pool_width) {
            self.units.back().has_shortcut = true;
            self.units.back().shortcut = {conv, pool_height, pool_width};
          },
          "conv"_a, "pool_height"_a, "pool_width"_a, "Gives the last unit a shortcut.");

  using E = ResidualEngine;
  nb::class_<E, Engine> type(m, "ResidualEngine");
  type.def(nb::init<ResidualSpec, const OptimizerParams&, int, int>(), "network"_a, "optimizer"_a, "batch_size"_a,
           "num_threads"_a);
  bind_steps<E>(type, [](E& engine) { return engine.input_features(); });

  nb::class_<StandardResidualEngine> standard(m, "StandardResidualEngine");
  standard.def(nb::init<ResidualSpec, const OptimizerParams&, int, int>(), "network"_a, "optimizer"_a, "batch_size"_a,
               "num_threads"_a);
  bind_steps<StandardResidualEngine>(standard, [](StandardResidualEngine& engine) { return engine.input_features(); });
  bind_memory<StandardResidualEngine>(standard);

  m.def(
      "plan_residual",
      [](const ResidualSpec& network, const OptimizerParams& optimizer, int batch_size, int num_threads) {
        const ResidualLayout layout = lay_out_residual(network, optimizer, batch_size, num_threads);
        return nb::make_tuple(describe(layout.engine.plan), layout.engine.plan.peak_bytes());
      },
      "network"_a, "optimizer"_a, "batch_size"_a, "num_threads"_a);
  m.def(
      "plan_standard_residual",
      [](const ResidualSpec& network, const OptimizerParams& optimizer, int batch_size, int num_threads) {
        const StandardResidualLayout layout = lay_out_standard_residual(network, optimizer, batch_size, num_threads);
        return nb::make_tuple(describe(layout.common.plan), layout.common.plan.peak_bytes());
      },
      "network"_a, "optimizer"_a, "batch_size"_a, "num_threads"_a);
}

}  // namespace bitfleet
