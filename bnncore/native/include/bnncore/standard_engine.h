// The preset `standard`: Algorithm 1 of Wang et al., arXiv:2102.04270 (after Courbariaux et al., "Binarized Neural
// Networks", 2016), everything in float32. It is what the other presets are compared with.
//
// Forward: Y = sgn(X) sgn(W); mu = mean(Y), psi = sqrt(mean((Y - mu)^2)); X' = (Y - mu) / psi + beta. Every X is kept.
// Backward, with v = dX' / psi and x = X' - beta: dY = v - mean(v) - x mean(v x), dbeta = sum(dX'),
// dX = dY sgn(W)^T where |X| <= 1 and 0 elsewhere, dW = sgn(X)^T dY. Then Adam or SGD; latent weights are clipped to
// [-1, 1] after the step, so that the rule dW = 0 where |W| > 1 has nothing left to do.
//
// It keeps the variables of the published memory model, 4 bytes * [X + 2 G + (lw + 1 + n) W + 4 C + P], in the
// published types, so that the comparison is with the algorithm as it is known: all dW live together until the update,
// and a pool in front of a norm has a float32 mask (one that follows the sign finds its arg-max in the kept map, which
// takes as much). Leaner than the model, where that comes by itself: the input stays in bytes, products are written
// where X will be, and the input has no gradient. What the model leaves out: running statistics, the moments of beta,
// labels, and the operands of the products (scratch).
//
// A channel whose Y are all equal is dead: X' = beta, and no gradient passes. The state's tensor mean_abs_dev holds
// what the preset normalises by, here the running psi, a standard deviation: a checkpoint evaluates the same in every
// preset, and continues to be trained in this one.
#pragma once

#include <algorithm>

#include "bnncore/layerwise_engine.h"

namespace bitfleet {

struct StandardBlockLayout {
  // float32 [out][fan-in]; SGD has no second moment.
  size_t weights = kAbsent, first_moment = kAbsent, second_moment = kAbsent, weight_grad = kAbsent;
  size_t beta = kAbsent, beta_first = kAbsent, beta_second = kAbsent, beta_grad = kAbsent;  // float32 [out]
  size_t mean = kAbsent, deviation = kAbsent;                     // float32 [out]: this step's
  size_t running_mean = kAbsent, running_mean_abs_dev = kAbsent;  // float32 [out]
  size_t x = kAbsent;       // float32 [batch][normalised positions][out]; the logits in the last block
  size_t pooled = kAbsent;  // float32 [batch][out positions][out]: signs, where the pool follows them
  size_t mask = kAbsent;    // float32 [batch][product positions][out]: 1 at the arg-max of a pool in front of the norm
};

struct StandardLayout {
  CommonLayout common;
  std::vector<StandardBlockLayout> blocks;
  // float32: Y in front of a pool; the gradient that enters a block, then the one that leaves it.
  size_t map_a = kAbsent;
  size_t map_b = kAbsent;  // float32: the gradient of Y
  size_t sums = kAbsent;   // float64 [2][most channels]
  size_t terms = kAbsent;  // float32 [3][most channels]
};

StandardLayout lay_out_standard_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer,
                                       int batch_size, int num_threads);

class StandardEngine final : public LayerwiseEngine {
 public:
  StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads);

  void initialise(uint64_t seed) override;
  void reset(uint64_t seed) override;
  using LayerwiseEngine::write_weights;
  void write_weights(size_t block, const float* values) override;

  // Of the last step, until the next one.
  void read_weight_gradient(size_t block, float* out) const;
  const float* beta_gradient(size_t block) const { return at<float>(layout_.blocks[block].beta_grad); }
  float* weights(size_t block) { return at<float>(layout_.blocks[block].weights); }
  float* beta(size_t block) { return at<float>(layout_.blocks[block].beta); }
  float* running_mean(size_t block) { return at<float>(layout_.blocks[block].running_mean); }
  float* running_mean_abs_dev(size_t block) { return at<float>(layout_.blocks[block].running_mean_abs_dev); }

 private:
  StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
                 StandardLayout layout);

  void forward(int count, bool training) override;
  void set_top_gradient(size_t index, float value) override { at<float>(layout_.map_a)[index] = value; }
  void backward_block(size_t block) override;
  void update_block(size_t block, float step_scale) override;
  float loss_divisor() const override { return static_cast<float>(batch_size_); }

  // Ways to read operands, for src/layerwise/products_inl.h.
  auto inputs_of(size_t block) const {
    const int channels = blocks_[block].in_channels;
    const uint8_t* bytes = at<uint8_t>(layout_.common.input);
    const bool pooled = block > 0 && blocks_[block - 1].pool == Pool::kAfterSign;
    const float* values =
        block == 0 ? nullptr : at<float>(pooled ? layout_.blocks[block - 1].pooled : layout_.blocks[block - 1].x);
    return [this, channels, bytes, values](size_t pixel, int channel, int count, float* out) {
      const size_t from = pixel * static_cast<size_t>(channels) + static_cast<size_t>(channel);
      if (values == nullptr) {
        kernels_.centre_bytes(bytes + from, count, 1.0f, out);
      } else {
        kernels_.signs(values + from, count, out);
      }
    };
  }
  auto weights_of(size_t block) const {
    const float* weights = at<float>(layout_.blocks[block].weights);
    const size_t fan_in = static_cast<size_t>(blocks_[block].fan_in());
    return [this, weights, fan_in](int output, int k, int count, float* out) {
      kernels_.signs(weights + static_cast<size_t>(output) * fan_in + k, count, out);
    };
  }
  auto gradients_of(size_t block) const {
    const float* grad_y = at<float>(layout_.map_b);
    const size_t channels = static_cast<size_t>(blocks_[block].out_channels);
    return [grad_y, channels](int row, int channel, int count, float* out) {
      std::copy_n(grad_y + static_cast<size_t>(row) * channels + channel, count, out);
    };
  }

  void multiply(size_t block, int count, float* y);
  void normalise(size_t block, int count, bool training);
  void pool_products(size_t block, int count);
  static void mark_first_largest(const BlockSpec& spec, const float* y, const float* largest, float* mask);
  void pool_signs(size_t block, int count);
  void route_to_positive(size_t block);
  void route_by_mask(size_t block);
  void norm_gradient(size_t block, const float* grad, float* grad_y);
  void find_weight_gradient(size_t block);
  void find_input_gradient(size_t block);

  StandardLayout layout_;
};

}  // namespace bitfleet
