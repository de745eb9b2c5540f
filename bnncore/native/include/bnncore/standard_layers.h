// The layers of the preset `standard`, of chains and of residual networks alike: products in float32, the l2 batch
// norm, updates. `standard_engine.h` says what they compute.
#pragma once

#include <string>
#include <vector>

#include "bnncore/layerwise_engine.h"

namespace bitfleet {

// float32 [out][fan-in]; SGD has no second moment.
struct WeightLayout {
  size_t values = kAbsent, first_moment = kAbsent, second_moment = kAbsent, gradient = kAbsent;
};

struct L2NormLayout {
  size_t beta = kAbsent, beta_first = kAbsent, beta_second = kAbsent, beta_grad = kAbsent;  // float32 [channels]
  size_t mean = kAbsent, deviation = kAbsent;                                               // likewise, this step's
  size_t running_mean = kAbsent, running_mean_abs_dev = kAbsent;                            // likewise
  size_t x = kAbsent;  // float32 [batch][positions][channels]: what leaves the norm
};

// What the norms of a network share, one after the other.
struct NormScratch {
  size_t sums = kAbsent;   // float64 [2][most channels]
  size_t terms = kAbsent;  // float32 [3][most channels]
};

// Each adds entries to a plan as indices; the others turn them into offsets once it is laid out.
L2NormLayout add_l2_norm(MemoryPlan& plan, const std::string& name, int batch_size, int positions, int channels);
NormScratch add_norm_scratch(MemoryPlan& plan, int most_channels);
void resolve(const MemoryPlan& plan, WeightLayout& weights);
void resolve(const MemoryPlan& plan, L2NormLayout& norm);
void resolve(const MemoryPlan& plan, NormScratch& scratch);

class StandardLayers : public LayerwiseEngine {
 protected:
  StandardLayers(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
                 CommonLayout common, const NormScratch& norm_scratch);

  float loss_divisor() const override { return static_cast<float>(batch_size_); }

  void forget(const WeightLayout& layout, size_t count);
  void forget(const L2NormLayout& layout, int channels);

  // `x` holds products of `rows` positions, and then what leaves the norm.
  void normalise(const L2NormLayout& norm, int channels, int rows, bool training);
  // The gradient of a norm's input, and of its beta. Where `masked`, `grad` counts where |X| <= 1 alone. grad_y may be
  // grad.
  void norm_gradient(const L2NormLayout& norm, int channels, int rows, bool masked, const float* grad, float* grad_y);

  // Latent weights of a binary layer, by the optimizer; real-valued parameters by Adam, without clipping.
  void update_latent(const WeightLayout& layout, size_t count, float step_scale);
  void update_real(const WeightLayout& layout, size_t count, float step_scale);
  void update_norm(const L2NormLayout& norm, int channels, float step_scale);

  // Ways to read operands.
  auto bytes_as_inputs(int channels) const {
    const uint8_t* bytes = input_bytes();
    return [this, bytes, channels](size_t pixel, int channel, int count, float* out) {
      const size_t from = pixel * static_cast<size_t>(channels) + static_cast<size_t>(channel);
      kernels_.centre_bytes(bytes + from, count, 1.0f, out);
    };
  }
  auto signs_as_inputs(const float* values, int channels) const {
    return [this, values, channels](size_t pixel, int channel, int count, float* out) {
      kernels_.signs(values + pixel * static_cast<size_t>(channels) + static_cast<size_t>(channel), count, out);
    };
  }
  static auto numbers_as_inputs(const float* values, int channels) {
    return [values, channels](size_t pixel, int channel, int count, float* out) {
      std::copy_n(values + pixel * static_cast<size_t>(channels) + static_cast<size_t>(channel), count, out);
    };
  }
  auto signs_as_weights(const WeightLayout& layout, const BlockSpec& spec) const {
    const float* weights = at<float>(layout.values);
    const size_t fan_in = static_cast<size_t>(spec.fan_in());
    return [this, weights, fan_in](int output, int k, int count, float* out) {
      kernels_.signs(weights + static_cast<size_t>(output) * fan_in + k, count, out);
    };
  }
  auto numbers_as_weights(const WeightLayout& layout, const BlockSpec& spec) const {
    const float* weights = at<float>(layout.values);
    const size_t fan_in = static_cast<size_t>(spec.fan_in());
    return [weights, fan_in](int output, int k, int count, float* out) {
      std::copy_n(weights + static_cast<size_t>(output) * fan_in + k, count, out);
    };
  }
  // grad_y [rows][out channels].
  static auto gradients_from(const float* grad_y, const BlockSpec& spec) {
    const size_t channels = static_cast<size_t>(spec.out_channels);
    return [grad_y, channels](int row, int channel, int count, float* out) {
      std::copy_n(grad_y + static_cast<size_t>(row) * channels + channel, count, out);
    };
  }

  // The three products (src/standard/layers_inl.h). y [rows][out channels] of the first `count` samples.
  template <typename Inputs, typename Weights>
  void multiply(const BlockSpec& spec, int count, Inputs inputs, Weights weights, float* y);
  template <typename Inputs>
  void find_weight_gradient(const BlockSpec& spec, const WeightLayout& layout, const float* grad_y, Inputs inputs);
  // Where the kernel covers its map: grad [batch][in features].
  template <typename Weights>
  void find_row_gradient(const BlockSpec& spec, const float* grad_y, Weights weights, float* grad);
  // A few samples at a time, the same ones whoever computes them: what is added to a pixel keeps its order.
  // place(first sample, member) gives where their maps of gradients shall be made; use(samples, maps) is called for
  // them then.
  template <typename Weights, typename Place, typename Use>
  void find_map_gradient(const BlockSpec& spec, const float* grad_y, Weights weights, Place place, Use use);

 private:
  const uint8_t* input_bytes() const { return at<uint8_t>(input_offset_); }

  NormScratch norm_scratch_;
  size_t input_offset_;
};

}  // namespace bitfleet
