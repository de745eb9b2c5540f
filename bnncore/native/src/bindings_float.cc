// The Python face of the engines that the bit-packed one is compared with.
#include <type_traits>

#include "bindings.h"
#include "bindings_engine.h"
#include "bnncore/float_engine.h"

namespace bitfleet {

using namespace nb::literals;

namespace {

template <class Numerics>
void bind(nb::module_& m, const char* name, const char* plan_name) {
  using E = FloatEngine<Numerics>;
  bind_engine<E>(m, name)
      .def(
          "weights",
          [](nb::handle self, size_t block) {
            E& engine = nb::cast<E&>(self);
            const BlockSpec& spec = engine.blocks()[block];
            using Bits = std::conditional_t<Numerics::kPaper, uint16_t, float>;
            return view(self, reinterpret_cast<Bits*>(engine.weights(block)),
                        {static_cast<size_t>(spec.out_channels), static_cast<size_t>(spec.fan_in())});
          },
          "block"_a, "A view of the latent weights, float32 or the bits of float16.")
      .def(
          "write_weights",
          [](E& self, size_t block, Array<const float, nb::ndim<2>> values) {
            self.write_weights(block, values.data());
          },
          "block"_a, "values"_a)
      .def(
          "gradients",
          [](E& self, size_t block) {
            const BlockSpec& spec = self.blocks()[block];
            std::vector<float> weights(spec.num_weights());
            self.read_weight_gradient(block, weights.data());
            const float* beta = self.beta_gradient(block);
            return nb::make_tuple(
                owned(std::move(weights), {static_cast<size_t>(spec.out_channels), static_cast<size_t>(spec.fan_in())}),
                owned(std::vector<float>(beta, beta + spec.out_channels), {static_cast<size_t>(spec.out_channels)}));
          },
          "block"_a, "Of the last step: of the weights, [out, fan-in], and of beta. For tests.");
  m.def(
      plan_name,
      [](const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size, int num_threads) {
        const FloatLayout layout = E::lay_out(blocks, optimizer, batch_size, num_threads);
        return nb::make_tuple(describe(layout.plan), layout.plan.peak_bytes());
      },
      "blocks"_a, "optimizer"_a, "batch_size"_a, "num_threads"_a);
}

}  // namespace

void bind_float_engines(nb::module_& m) {
  bind<Standard>(m, "StandardEngine", "plan_standard");
  bind<Paper>(m, "PaperEngine", "plan_paper");
}

}  // namespace bitfleet
