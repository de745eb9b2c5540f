// The Python face of the presets `standard` and `paper`, and their kernels.
#include <string>
#include <tuple>

#include "bindings.h"
#include "bindings_engine.h"
#include "bnncore/paper_engine.h"
#include "bnncore/standard_engine.h"
#include "layerwise/products_inl.h"

namespace bitfleet {

using namespace nb::literals;

namespace {

size_t size(int value) { return static_cast<size_t>(value); }

template <typename Layout, typename LayOut>
void bind_plan(nb::module_& m, const char* name, LayOut lay_out) {
  m.def(
      name,
      [lay_out](const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                int num_threads) {
        const Layout layout = lay_out(blocks, optimizer, batch_size, num_threads);
        return nb::make_tuple(describe(layout.common.plan), layout.common.plan.peak_bytes());
      },
      "blocks"_a, "optimizer"_a, "batch_size"_a, "num_threads"_a);
}

template <class E>
nb::class_<E> bind_float_engine(nb::module_& m, const char* name) {
  nb::class_<E> type = bind_engine<E>(m, name);
  type.def(
          "weights",
          [](nb::handle self, size_t block) {
            E& engine = nb::cast<E&>(self);
            const BlockSpec& spec = engine.blocks()[block];
            return view(self, engine.weights(block), {size(spec.out_channels), size(spec.fan_in())});
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
          [](const E& self, size_t block) {
            const BlockSpec& spec = self.blocks()[block];
            std::vector<float> weights(spec.num_weights());
            self.read_weight_gradient(block, weights.data());
            const float* beta = self.beta_gradient(block);
            return nb::make_tuple(owned(std::move(weights), {size(spec.out_channels), size(spec.fan_in())}),
                                  owned(std::vector<float>(beta, beta + spec.out_channels), {size(spec.out_channels)}));
          },
          "block"_a, "Of the last step: of the weights, [out, fan-in], and of beta. For tests.");
  return type;
}

// y = x w^T through the blocks of the engines, in one thread: x float32 [rows][depth], w float32 [columns][depth].
void multiply(const std::string& isa, Array<const float, nb::ndim<2>> x, Array<const float, nb::ndim<2>> w,
              Array<float, nb::ndim<2>> y) {
  const int rows = static_cast<int>(x.shape(0)), depth = static_cast<int>(x.shape(1));
  const int columns = static_cast<int>(w.shape(0));
  std::vector<float> a(size_t{kProductRows} * kProductStride), b(size_t{kProductColumns} * kProductDepth),
      tile(kProductTile), staged(size_t{kSgemmColumns} * kProductStride);
  const ProductScratch scratch{a.data(), b.data(), tile.data(), staged.data()};
  BlockSpec dense{};
  dense.in_height = dense.in_width = dense.kernel_height = dense.kernel_width = dense.stride = 1;
  dense.conv_height = dense.conv_width = dense.pool_height = dense.pool_width = 1;
  dense.in_channels = depth;
  dense.out_channels = columns;
  const auto copy = [depth](const float* source) {
    return [source, depth](auto row, int k, int count, float* out) {
      std::copy_n(source + static_cast<size_t>(row) * size(depth) + k, count, out);
    };
  };
  float* target = y.data();
  Product(*kernels_for(isa).floats, scratch)
      .forward(dense, {0, rows}, {0, columns}, copy(x.data()), copy(w.data()),
               [&](int first_row, int some, int first, int count, const float* values, size_t stride) {
                 for (int i = 0; i < some; ++i) {
                   std::copy_n(values + size(i) * stride, count, target + size(first_row + i) * size(columns) + first);
                 }
               });
}

void bind_float_kernels(nb::module_& m) {
  m.def("multiply", &multiply, "isa"_a, "x"_a, "w"_a, "y"_a);
  m.def("widen", [](const std::string& isa, Array<const uint16_t, nb::ndim<1>> halves, Array<float, nb::ndim<1>> out) {
    kernels_for(isa).floats->widen(halves.data(), static_cast<int>(halves.shape(0)), out.data());
  });
  m.def("narrow", [](const std::string& isa, Array<const float, nb::ndim<1>> values, Array<uint16_t, nb::ndim<1>> out) {
    kernels_for(isa).floats->narrow(values.data(), static_cast<int>(values.shape(0)), out.data());
  });
  m.def("to_half", &to_half);
  m.def("to_half_stochastic", &to_half_stochastic);
}

}  // namespace

void bind_float_engines(nb::module_& m) {
  bind_float_engine<StandardEngine>(m, "StandardEngine");
  bind_float_engine<PaperEngine>(m, "PaperEngine");
  bind_plan<StandardLayout>(m, "plan_standard", lay_out_standard_engine);
  bind_plan<PaperLayout>(m, "plan_paper", lay_out_paper_engine);
  nb::module_ kernels = m.def_submodule("float_kernels", "Kernels in float32 and float16, for tests and benchmarks.");
  bind_float_kernels(kernels);
}

}  // namespace bitfleet
