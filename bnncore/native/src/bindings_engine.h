// What all engines show to Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <utility>
#include <vector>

#include "bnncore/engine.h"

namespace bitfleet {

namespace nb = nanobind;

template <typename T, typename... Config>
using Array = nb::ndarray<nb::numpy, T, nb::c_contig, nb::device::cpu, Config...>;

template <typename T>
Array<T> owned(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto* holder = new std::vector<T>(std::move(values));
  nb::capsule owner(holder, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return Array<T>(holder->data(), shape, owner);
}

// A view of the arena that keeps its engine alive.
template <typename T>
Array<T> view(nb::handle engine, T* data, std::initializer_list<size_t> shape) {
  return Array<T>(data, shape, engine);
}

inline nb::list describe(const MemoryPlan& plan) {
  nb::list entries;
  for (const PlanEntry& e : plan.entries()) {
    nb::list phases;
    const std::pair<uint32_t, const char*> names[] = {{kForward, "forward"},         {kLoss, "loss"},
                                                      {kNormalise, "normalise"},     {kWeights, "weights"},
                                                      {kInputs, "inputs"},           {kEvaluate, "evaluate 0"},
                                                      {2 * kEvaluate, "evaluate 1"}, {4 * kEvaluate, "evaluate 2"},
                                                      {8 * kEvaluate, "evaluate 3"}};
    for (const auto& [bit, name] : names) {
      if ((e.phases & bit) != 0) phases.append(name);
    }
    entries.append(nb::make_tuple(e.name, e.role, e.dtype, nb::tuple(nb::cast(e.shape)), e.bytes, e.offset,
                                  nb::tuple(phases), e.member));
  }
  return entries;
}

// What every engine does, and its input, which has `input_features(engine)` bytes a sample.
template <class E, class Class, class InputFeatures>
void bind_steps(Class& type, InputFeatures input_features) {
  using namespace nb::literals;
  type.def("initialise", &E::initialise, "seed"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("reset", &E::reset, "seed"_a, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "step",
          [](E& self, float step_scale) {
            StepResult result;
            {
              nb::gil_scoped_release release;
              result = self.step(step_scale);
            }
            return std::make_tuple(result.loss, result.correct);
          },
          "step_scale"_a)
      .def("observe", &E::observe, "number"_a, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "evaluate",
          [](E& self, int count) {
            StepResult result;
            {
              nb::gil_scoped_release release;
              result = self.evaluate(count, nullptr);
            }
            return std::make_tuple(result.loss, result.correct);
          },
          "count"_a)
      .def(
          "predict",
          [](E& self, int count) {
            std::vector<int32_t> predictions(static_cast<size_t>(count));
            {
              nb::gil_scoped_release release;
              self.evaluate(count, predictions.data());
            }
            return owned(std::move(predictions), {static_cast<size_t>(count)});
          },
          "count"_a)
      .def_prop_ro("input", [input_features](nb::handle self) {
        E& engine = nb::cast<E&>(self);
        return view(self, engine.input(),
                    {static_cast<size_t>(engine.batch_size()), static_cast<size_t>(input_features(engine))});
      });
}

// What every engine keeps: its memory, and what it counts.
template <class E, class Class>
void bind_memory(Class& type) {
  using namespace nb::literals;
  type.def_prop_ro("labels",
                   [](nb::handle self) {
                     E& engine = nb::cast<E&>(self);
                     return view(self, engine.labels(), {static_cast<size_t>(engine.batch_size())});
                   })
      .def_prop_ro("arena",
                   [](nb::handle self) {
                     E& engine = nb::cast<E&>(self);
                     return view(self, engine.arena(), {engine.plan().peak_bytes()});
                   })
      .def_prop_ro("steps_done", &E::steps_done)
      .def_prop_ro("saturated", &E::saturated)
      .def_prop_ro("isa", &E::isa)
      .def_prop_ro("plan_entries", [](const E& self) { return describe(self.plan()); })
      .def_prop_ro("plan_peak_bytes", [](const E& self) { return self.plan().peak_bytes(); })
      .def("keep_statistics", &E::keep_statistics)
      .def("counters",
           [](const E& self) {
             const EngineCounters c = self.counters();
             return std::make_tuple(c.seed, c.steps_done, c.statistics_steps, c.saturated, c.beta1_power,
                                    c.beta2_power);
           })
      .def(
          "restore",
          [](E& self, uint64_t seed, int64_t steps_done, int32_t statistics_steps, int64_t saturated,
             double beta1_power, double beta2_power) {
            self.restore({seed, steps_done, statistics_steps, saturated, beta1_power, beta2_power});
          },
          "seed"_a, "steps_done"_a, "statistics_steps"_a, "saturated"_a, "beta1_power"_a, "beta2_power"_a);
}

template <class E>
nb::class_<E> bind_engine(nb::module_& m, const char* name) {
  using namespace nb::literals;
  nb::class_<E> type(m, name);
  bind_steps<E>(type, [](E& engine) { return engine.blocks()[0].in_features(); });
  bind_memory<E>(type);
  type.def(nb::init<std::vector<BlockSpec>, const OptimizerParams&, int, int>(), "blocks"_a, "optimizer"_a,
           "batch_size"_a, "num_threads"_a)
      .def(
          "norm",
          [](nb::handle self, size_t block) {
            E& engine = nb::cast<E&>(self);
            const size_t channels = static_cast<size_t>(engine.blocks()[block].out_channels);
            return nb::make_tuple(view(self, engine.beta(block), {channels}),
                                  view(self, engine.running_mean(block), {channels}),
                                  view(self, engine.running_mean_abs_dev(block), {channels}));
          },
          "block"_a);
  return type;
}

}  // namespace bitfleet
