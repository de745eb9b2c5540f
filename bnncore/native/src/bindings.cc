// The Python face of the engine. Shapes are checked in bnncore/engine.py; here they are only handed over.
#include "bindings.h"

#include <fcntl.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "bindings_engine.h"
#include "bnncore/clock.h"
#include "bnncore/engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitfleet {

namespace {

nb::dict step_traced(Engine& engine, float step_scale) {
  const size_t batch = static_cast<size_t>(engine.batch_size());
  Trace trace;
  for (size_t i = 0; i < engine.blocks().size(); ++i) {
    const BlockSpec& spec = engine.blocks()[i];
    const size_t in = static_cast<size_t>(spec.fan_in()), out = static_cast<size_t>(spec.out_channels);
    BlockTrace block;
    const size_t norm = batch * static_cast<size_t>(spec.norm_positions());
    block.y.resize(out * norm);
    block.y_again.resize(out * norm);
    block.sums.resize(out * 2);
    block.thresholds.resize(out * 3);
    block.grad_in.resize(batch * static_cast<size_t>(spec.out_positions()) * out);
    block.grad_y.resize(batch * static_cast<size_t>(spec.conv_positions()) * out);
    block.grad_weights.resize(out * in);
    if (i > 0) block.grad_x.resize(batch * static_cast<size_t>(spec.in_features()));
    trace.blocks.push_back(std::move(block));
  }
  const StepResult result = engine.step(step_scale, &trace);
  nb::list blocks;
  for (size_t i = 0; i < trace.blocks.size(); ++i) {
    const BlockSpec& spec = engine.blocks()[i];
    const size_t in = static_cast<size_t>(spec.fan_in()), out = static_cast<size_t>(spec.out_channels);
    BlockTrace& t = trace.blocks[i];
    nb::dict d;
    const size_t norm = batch * static_cast<size_t>(spec.norm_positions());
    d["y"] = owned(std::move(t.y), {out, norm});
    d["y_again"] = owned(std::move(t.y_again), {out, norm});
    d["sums"] = owned(std::move(t.sums), {out, 2});
    d["thresholds"] = owned(std::move(t.thresholds), {out, 3});
    d["grad_in"] = owned(std::move(t.grad_in), {batch * static_cast<size_t>(spec.out_positions()), out});
    d["grad_y"] = owned(std::move(t.grad_y), {batch * static_cast<size_t>(spec.conv_positions()), out});
    d["grad_weights"] = owned(std::move(t.grad_weights), {out, in});
    if (i > 0) {
      d["grad_x"] = owned(std::move(t.grad_x),
                          {batch * static_cast<size_t>(spec.in_positions()), static_cast<size_t>(spec.in_channels)});
    }
    d["grad_in_scale"] = t.grad_in_scale;
    d["grad_y_scale"] = t.grad_y_scale;
    blocks.append(d);
  }
  nb::dict d;
  d["blocks"] = blocks;
  const size_t classes = static_cast<size_t>(engine.blocks().back().out_channels);
  d["logits"] = owned(std::move(trace.logits), {batch, classes});
  d["loss"] = result.loss;
  d["correct"] = result.correct;
  return d;
}

OptimizerKind optimizer_kind(const std::string& name) {
  if (name == "latent8") return OptimizerKind::kLatent8;
  if (name == "latent8m") return OptimizerKind::kLatent8Momentum;
  if (name == "bop") return OptimizerKind::kBop;
  if (name == "adam") return OptimizerKind::kAdam;
  if (name == "sgd") return OptimizerKind::kSgd;
  if (name == "frozen") return OptimizerKind::kFrozen;
  throw std::invalid_argument("unknown optimizer '" + name + "'");
}

Pool pool_of(const std::string& name) {
  if (name == "none") return Pool::kNone;
  if (name == "before_norm") return Pool::kBeforeNorm;
  if (name == "after_sign") return Pool::kAfterSign;
  throw std::invalid_argument("unknown pool '" + name + "'");
}

// Reads rows `indices` of a file of equal rows into `out`, with pread: no seek, no mapping, no copy.
void read_rows(int fd, int64_t offset, int64_t row_bytes, Array<const uint32_t, nb::ndim<1>> indices,
               Array<uint8_t, nb::ndim<2>> out) {
  const size_t count = indices.shape(0);
  if (out.shape(0) < count || static_cast<int64_t>(out.shape(1)) != row_bytes) {
    throw std::invalid_argument("out must hold one row of " + std::to_string(row_bytes) + " bytes for each index");
  }
  for (size_t i = 0; i < count; ++i) {
    uint8_t* target = out.data() + i * static_cast<size_t>(row_bytes);
    int64_t done = 0;
    while (done < row_bytes) {
      const ssize_t got = pread(fd, target + done, static_cast<size_t>(row_bytes - done),
                                offset + static_cast<int64_t>(indices.data()[i]) * row_bytes + done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw std::runtime_error("row " + std::to_string(indices.data()[i]) + ": " + std::strerror(errno));
      if (got == 0) {
        throw std::runtime_error("row " + std::to_string(indices.data()[i]) + " lies past the end of the file");
      }
      done += got;
    }
  }
}

// Fisher-Yates driven by the counter-based generator: a function of (count, seed, epoch).
Array<uint32_t> permutation(uint32_t count, uint64_t seed, uint64_t epoch) {
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  const RandomStream stream = random_stream(seed, epoch, 0, Purpose::kShuffle);
  for (uint32_t i = count; i > 1; --i) {
    const uint32_t j = static_cast<uint32_t>(uint64_t{random_word(stream, i)} * i >> 32);
    std::swap(order[i - 1], order[j]);
  }
  return owned(std::move(order), {count});
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native engine of bnncore; use it through bnncore.engine.";
  nb::set_leak_warnings(false);

  nb::class_<OptimizerParams>(m, "OptimizerParams")
      .def(
          "__init__",
          [](OptimizerParams* self, const std::string& name, float step_size, float momentum, float momentum_unit,
             float gamma, float threshold, float range, float beta1, float beta2, float epsilon, float beta_step_size,
             int init_limit, int normaliser_steps, float headroom, float scale_decay) {
            new (self) OptimizerParams{optimizer_kind(name),
                                       step_size,
                                       momentum,
                                       momentum_unit,
                                       gamma,
                                       threshold,
                                       range,
                                       beta1,
                                       beta2,
                                       epsilon,
                                       beta_step_size,
                                       init_limit,
                                       normaliser_steps,
                                       headroom,
                                       scale_decay};
          },
          nb::kw_only(), "name"_a, "step_size"_a, "momentum"_a, "momentum_unit"_a, "gamma"_a, "threshold"_a, "range"_a,
          "beta1"_a, "beta2"_a, "epsilon"_a, "beta_step_size"_a, "init_limit"_a, "normaliser_steps"_a, "headroom"_a,
          "scale_decay"_a);

  nb::class_<BlockSpec>(m, "BlockSpec")
      .def(
          "__init__",
          [](BlockSpec* self, std::string linear, std::string norm, int in_height, int in_width, int in_channels,
             int out_channels, int kernel_height, int kernel_width, int stride, int pad_height, int pad_width,
             int conv_height, int conv_width, const std::string& pool, int pool_height, int pool_width) {
            new (self) BlockSpec{std::move(linear), std::move(norm), in_height,   in_width,   in_channels, out_channels,
                                 kernel_height,     kernel_width,    stride,      pad_height, pad_width,   conv_height,
                                 conv_width,        pool_of(pool),   pool_height, pool_width};
          },
          nb::kw_only(), "linear"_a, "norm"_a, "in_height"_a, "in_width"_a, "in_channels"_a, "out_channels"_a,
          "kernel_height"_a, "kernel_width"_a, "stride"_a, "pad_height"_a, "pad_width"_a, "conv_height"_a,
          "conv_width"_a, "pool"_a, "pool_height"_a, "pool_width"_a);

  bind_engine<Engine>(m, "Engine")
      .def(nb::init<std::vector<BlockSpec>, const OptimizerParams&, int, int, bool>(), "blocks"_a, "optimizer"_a,
           "batch_size"_a, "num_threads"_a, "keep_products"_a)
      .def("step_traced", &step_traced, "step_scale"_a)
      .def("phase_seconds",
           [](const Engine& self) {
             std::vector<std::tuple<double, double, double, double>> blocks;
             for (const PhaseSeconds& p : self.phase_seconds()) {
               blocks.emplace_back(p.forward, p.recompute, p.grad_weights, p.grad_inputs);
             }
             return blocks;
           })
      .def("step_seconds", &Engine::step_seconds)
      .def("reset_phases", &Engine::reset_phases)
      .def(
          "weights",
          [](nb::handle self, size_t block) -> nb::object {
            Engine& engine = nb::cast<Engine&>(self);
            const BlockSpec& spec = engine.blocks()[block];
            const size_t out = static_cast<size_t>(spec.out_channels), in = static_cast<size_t>(spec.fan_in());
            switch (engine.optimizer_kind()) {
              case OptimizerKind::kAdam:
              case OptimizerKind::kSgd:
                return nb::cast(view(self, engine.latent_float(block), {out, in}));
              case OptimizerKind::kFrozen:
              case OptimizerKind::kBop: {
                std::vector<int8_t> weights(out * in);
                engine.unpack_weights(block, weights.data());
                return nb::cast(owned(std::move(weights), {out, in}));
              }
              default:
                return nb::cast(view(self, engine.latent_int8(block), {out, in}));
            }
          },
          "block"_a, "A view of the latent weights; under Bop, which keeps none, a new array of -127 and 127.")
      .def(
          "write_weights",
          [](Engine& self, size_t block, Array<const int8_t, nb::ndim<2>> values) {
            self.write_weights(block, values.data());
          },
          "block"_a, "values"_a)
      .def(
          "write_weights",
          [](Engine& self, size_t block, Array<const float, nb::ndim<2>> values) {
            self.write_weights(block, values.data());
          },
          "block"_a, "values"_a);
  bind_float_engines(m);
  bind_residual_engine(m);

  m.def(
      "plan",
      [](const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
         bool keep_products) {
        const EngineLayout layout = lay_out_engine(blocks, optimizer, batch_size, num_threads, keep_products);
        return nb::make_tuple(describe(layout.plan), layout.plan.peak_bytes());
      },
      "blocks"_a, "optimizer"_a, "batch_size"_a, "num_threads"_a, "keep_products"_a = false);
  m.def("isa_available", &available_isas);
  m.def("isa_selected", [] { return std::string(selected_kernels().isa); });
  m.def("measure_clock_hz", &measure_clock_hz, nb::call_guard<nb::gil_scoped_release>());
  m.def("permutation", &permutation, "count"_a, "seed"_a, "epoch"_a);
  m.def("read_rows", &read_rows, "fd"_a, "offset"_a, "row_bytes"_a, "indices"_a, "out"_a);

  nb::module_ kernels = m.def_submodule("kernels", "Single kernels by instruction set, for tests and benchmarks.");
  bind_kernels(kernels);
  bind_layers(kernels);
  bind_ring(kernels);
  bind_signs(kernels);
}

}  // namespace bitfleet
