// Single kernels by instruction set. Outputs are written into arrays that the caller owns, strides included, so tests
// can look past the edges.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "bnncore/dispatch.h"
#include "bnncore/real_math.h"
#include "bnncore/rounding.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitfleet {

namespace {

template <typename T>
using Matrix = nb::ndarray<nb::numpy, T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Vector = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Scratch with the alignment that the engine's arena gives.
struct AlignedBytes {
  explicit AlignedBytes(size_t size) : data(::operator new(size, std::align_val_t{64})) {}
  ~AlignedBytes() { ::operator delete(data, std::align_val_t{64}); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  void* data;
};

int extent(size_t value) { return static_cast<int>(value); }

// What is done to products of either width; the names end with it.
template <typename Y>
void bind_products(nb::module_& m, const std::string& width) {
  const auto named = [&width](const char* name) { return name + width; };
  m.def(named("input_gemm").c_str(), [](const std::string& isa, Matrix<const uint8_t> u, int batch,
                                        Matrix<const uint64_t> w, int depth, int segments, Matrix<Y> y) {
    const int rows = extent(w.shape(0)), width = depth / segments;
    AlignedBytes expanded(input_expanded_bytes(segments, width));
    int8_t* weights = static_cast<int8_t*>(expanded.data);
    const Kernels& kernels = kernels_for(isa);
    for (int first = 0; first < rows; first += kInputGemmRows) {
      const int some = std::min(kInputGemmRows, rows - first);
      kernels.input_expand(w.data() + first * w.shape(1), w.shape(1), some, segments, width, weights);
      kernels.input_gemm_of<Y>()(u.data(), u.shape(1), static_cast<size_t>(width), batch, weights, some, segments,
                                 width, y.data() + first * y.shape(1), y.shape(1));
    }
  });
  m.def(named("statistics").c_str(), [](const std::string& isa, Vector<const Y> y) {
    const ChannelStatistics s = kernels_for(isa).channel->of<Y>().statistics(y.data(), extent(y.shape(0)));
    return std::make_tuple(s.sum, s.abs_deviation);
  });
  m.def(named("emit_signs").c_str(), [](const std::string& isa, Matrix<const Y> y, int count,
                                        Vector<const int32_t> sign_from, Vector<uint16_t> bits) {
    kernels_for(isa).channel->of<Y>().emit_signs(y.data(), y.shape(1), sign_from.data(), extent(y.shape(0)), count,
                                                 bits.data());
  });
  // The gradient of one channel from y and q: (saturated, largest), with q replaced.
  m.def(named("channel_gradient").c_str(), [](const std::string& isa, Vector<const Y> y, Vector<int8_t> q,
                                              int64_t y_bound, float beta, float gain, uint32_t low, uint32_t high,
                                              uint32_t first) {
    const ProductKernels<Y>& kernels = kernels_for(isa).channel->of<Y>();
    const int count = extent(y.shape(0));
    const ChannelStatistics statistics = kernels.statistics(y.data(), count);
    ChannelNorms norms;
    kernels_for(isa).channel->moments(&statistics, count, 1, norms);
    kernels_for(isa).channel->thresholds(&beta, 1, norms);
    const ChannelThresholds t = norms.thresholds(0);
    const int64_t floor_mean = floor_divide(statistics.sum, count);
    const GradientSums sums = kernels.gradient_sums(
        y.data(), q.data(), count, y_bound, t, static_cast<int32_t>(floor_mean), floor_mean * count == statistics.sum);
    const GradientCoefficients c = gradient_coefficients(statistics, floor_mean, norms.mean_abs_dev[0], t, sums, count);
    const float largest = kernels.gradient_max(y.data(), q.data(), count, c);
    const QuantiseResult r = kernels.gradient_quantise(y.data(), q.data(), count, c, gain, {low, high}, first);
    return std::make_tuple(r.saturated, r.max_abs, largest, sums.q, sums.qy);
  });
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("pack_int8", [](const std::string& isa, Vector<const int8_t> values, Vector<uint64_t> words) {
    kernels_for(isa).pack_int8(values.data(), extent(values.shape(0)), words.data());
  });
  m.def("pack_float", [](const std::string& isa, Vector<const float> values, Vector<uint64_t> words) {
    kernels_for(isa).pack_float(values.data(), extent(values.shape(0)), words.data());
  });
  m.def("transpose_bytes", [](const std::string& isa, Matrix<const int8_t> source, int rows, int columns,
                              Matrix<int8_t> target) {
    kernels_for(isa).transpose_bytes(source.data(), source.shape(1), rows, columns, target.data(), target.shape(1));
  });
  m.def("transpose_words", [](const std::string& isa, Matrix<const uint64_t> source, int rows, int columns,
                              Matrix<uint64_t> target) {
    kernels_for(isa).transpose_words(source.data(), source.shape(1), rows, columns, target.data(), target.shape(1));
  });
  m.def("xnor_gemm", [](const std::string& isa, Matrix<const uint64_t> x, int count, Matrix<const uint64_t> w,
                        int depth, Matrix<int16_t> y) {
    const int words = words_for(depth), stride = extent(x.shape(1));
    std::vector<int32_t> offsets(static_cast<size_t>(words));
    for (int i = 0; i < words; ++i) offsets[i] = i * stride;
    kernels_for(isa).xnor_gemm({x.data(), offsets.data(), stride, stride}, count, w.data(), w.shape(1),
                               extent(w.shape(0)), words, depth, nullptr, 0, y.data(), y.shape(1));
  });
  m.def(
      "max_pool",
      [](const std::string& isa, Matrix<const int16_t> y, int window_height, int window_width, Vector<int16_t> pooled,
         std::optional<Vector<uint8_t>> choices) {
        const int height = extent(y.shape(0)), width = extent(y.shape(1));
        kernels_for(isa).pool->max_pool(
            y.data(), {height, width, height / window_height, width / window_width, window_height, window_width},
            pooled.data(), choices ? choices->data() : nullptr);
      },
      "isa"_a, "y"_a, "window_height"_a, "window_width"_a, "pooled"_a, "choices"_a.none());
  bind_products<int16_t>(m, "16");
  bind_products<int32_t>(m, "32");
  m.def("sign_gemm", [](const std::string& isa, Matrix<const int8_t> g, int depth, Matrix<const uint64_t> bits,
                        Matrix<int32_t> out) {
    const int rows = extent(g.shape(0));
    const int blocks = extent(bits.shape(0));
    AlignedBytes columns(bits.shape(0) * most_sign_bits_bytes(kSignGemmDepth)),
        expanded(g.shape(0) * sign_row_bytes(kSignGemmDepth));
    uint8_t* column_data = static_cast<uint8_t*>(columns.data);
    uint8_t* row_data = static_cast<uint8_t*>(expanded.data);
    const Kernels& kernels = kernels_for(isa);
    for (int j = 0; j < depth; j += kSignGemmDepth) {
      const int count = std::min(kSignGemmDepth, depth - j);
      for (int b = 0; b < blocks; ++b) {
        kernels.sign_expand_bits(bits.data() + size_t(b) * bits.shape(1) + j, count,
                                 column_data + b * kernels.sign_bits_bytes(count));
      }
      kernels.sign_expand_rows(g.data() + j, g.shape(1), rows, count, row_data);
      kernels.sign_accumulate(row_data, rows, count, column_data, blocks, out.data(), out.shape(1), kColumnBlock,
                              /*adds=*/true);
    }
  });
  m.def("input_grad", [](const std::string& isa, Matrix<const int8_t> g, int depth, Matrix<const uint8_t> u, int k0,
                         Matrix<int32_t> out) {
    AlignedBytes expanded(kInputGradScratch);
    for (int j = 0; j < depth; j += kInputGradDepth) {
      kernels_for(isa).input_grad(g.data() + j, g.shape(1), extent(g.shape(0)), std::min(kInputGradDepth, depth - j),
                                  u.data() + j * u.shape(1) + k0, u.shape(1), static_cast<uint8_t*>(expanded.data),
                                  out.data());
    }
  });
  m.def("integer_quantise", [](const std::string& isa, Vector<const int32_t> sums, int32_t whole, Vector<int8_t> q,
                               float gain, uint32_t low, uint32_t high, uint32_t first) {
    const QuantiseResult r = kernels_for(isa).channel->integer_quantise(
        sums.data(), whole, q.data(), extent(sums.shape(0)), gain, {low, high}, first);
    return std::make_tuple(r.saturated, r.max_abs);
  });
  m.def("latent8", [](const std::string& isa, Vector<int8_t> u, Vector<const int32_t> sums, int32_t factor,
                      int32_t offset, float gain, float step, uint32_t low, uint32_t high, uint32_t first) {
    kernels_for(isa).update->latent8(u.data(), {1, extent(u.shape(0)), 0, 0, first, 0},
                                     {sums.data(), 0, factor, &offset}, gain, {step}, {low, high});
  });
  m.def("latent8_momentum", [](const std::string& isa, Vector<int8_t> u, Vector<int8_t> momentum,
                               Vector<const int32_t> sums, int32_t factor, int32_t offset, float gain, float decay,
                               float inflow, float step, uint32_t low, uint32_t high, uint32_t first) {
    kernels_for(isa).update->latent8_momentum(u.data(), momentum.data(), {sums.data(), factor, offset},
                                              extent(u.shape(0)), gain, {decay, inflow, step}, {low, high}, first);
  });
  m.def("bop", [](const std::string& isa, uint32_t signs, Vector<int8_t> average, Vector<const int32_t> sums,
                  int32_t factor, int32_t offset, float gain, float keep, float inflow, float threshold, uint32_t low,
                  uint32_t high, uint32_t first) {
    return kernels_for(isa).update->bop(signs, average.data(), {sums.data(), factor, offset}, extent(average.shape(0)),
                                        gain, {keep, inflow, threshold}, {low, high}, first);
  });
  m.def("adam", [](const std::string& isa, Vector<float> latent, Vector<float> mean, Vector<float> square,
                   Vector<const int32_t> sums, int32_t factor, int32_t offset, float gain, float beta1, float beta2,
                   float step, float inverse_correction, float epsilon) {
    kernels_for(isa).update->adam(latent.data(), mean.data(), square.data(), {sums.data(), factor, offset},
                                  extent(latent.shape(0)), gain, {beta1, beta2, step, inverse_correction, epsilon});
  });
  m.def("sgd", [](const std::string& isa, Vector<float> latent, Vector<float> momentum, Vector<const int32_t> sums,
                  int32_t factor, int32_t offset, float gain, float decay, float step) {
    kernels_for(isa).update->sgd(latent.data(), momentum.data(), {sums.data(), factor, offset}, extent(latent.shape(0)),
                                 gain, {decay, step});
  });
  m.def("random_words", [](uint64_t seed, uint64_t step, uint32_t layer, uint32_t purpose, Vector<uint32_t> out) {
    const RandomStream stream = random_stream(seed, step, layer, static_cast<Purpose>(purpose));
    for (size_t i = 0; i < out.shape(0); ++i) out.data()[i] = random_word(stream, static_cast<uint32_t>(i));
    return std::make_tuple(stream.low, stream.high);
  });
  m.def("round_stochastic", &round_stochastic);
  m.def("exp", &exp_exact);
  m.def("log", &log_exact);
}

}  // namespace bitfleet
