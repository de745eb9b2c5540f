// The preset `paper`: Algorithm 2 of Wang et al., "Enabling Binary Neural Network Training on the Edge",
// arXiv:2102.04270, as published, with the activation mask without which it diverges.
//
// Forward: Y = sgn(X) sgn(W); mu = mean(Y), psi = mean(|Y - mu|); X' = (Y - mu) / psi + beta, of which one bit is kept,
// sgn(X'), with omega = mean(|X'|) a channel.
// Backward, with v = dX' / psi: dY = v - mean(v) - sgn(X') mean(v sgn(X') omega), dbeta = sum(dX'),
// dX = dY sgn(W)^T where |X| <= 1 and 0 elsewhere, dW = sgn(sgn(X)^T dY), kept as one bit until the update.
//
// Storage is that of the published memory model, (X + W + P) / 8 + 2 bytes * [2 G + (lw + n) W + 4 C]: bits for signs,
// arg-maxima and dW, float16 for weights, moments, dX or Y, and dY; arithmetic is float32. Beyond the model: the mask
// |X| <= 1, another bit an element ("outside" in the plan), the input in bytes instead of bits, float32 instead of
// float16 for the few numbers a channel, and what the model does not count for any preset (running statistics, the
// moments of beta, labels, scratch).
//
// Choices where the paper and its code are silent or differ:
// - sgn(X') and omega are taken after beta, as in the authors' C++; sgn(0) = +1; padding counts as 0.
// - The gradient of a weight is +-1 for Adam, which does not see a common factor, while (1 - beta2) / N would underflow
//   its float16 moment; SGD takes +-1 / sqrt(weights of the layer).
// - Weights and moments are rounded to float16 stochastically: the last place of a weight near 1 is 4.9e-4, so that
//   rounding to nearest would lose small steps, and a second moment near 1 would stop growing. All else is rounded to
//   nearest and saturates at 65504, so that no infinity and no NaN can arise.
// - Latent weights are clipped to [-1, 1] after the step: "cancelled where |W| > 1" has nothing left to do.
// - The loss is summed over the batch, which keeps small gradients within float16; beta is updated by their mean.
// - The first layer reads (2u - 255) / 255, whose sums fit float16; its running statistics are kept in the unit of the
//   other presets, those of 2u - 255.
#pragma once

#include "bnncore/float16.h"
#include "bnncore/layerwise_engine.h"

namespace bitfleet {

struct PaperBlockLayout {
  // float16 [out][fan-in]; SGD has no second moment.
  size_t weights = kAbsent, first_moment = kAbsent, second_moment = kAbsent;
  size_t weight_grad = kAbsent;  // bits [out][fan-in]: set where the gradient is negative
  size_t beta = kAbsent, beta_first = kAbsent, beta_second = kAbsent, beta_grad = kAbsent;  // float32 [out]
  size_t mean = kAbsent, deviation = kAbsent, omega = kAbsent;    // float32 [out]: this step's
  size_t running_mean = kAbsent, running_mean_abs_dev = kAbsent;  // float32 [out]
  size_t negative = kAbsent, outside = kAbsent;  // bits [batch][normalised positions][out]: X' < 0, |X'| > 1
  size_t pooled = kAbsent;                       // bits [batch][out positions][out], where the pool follows the sign
  size_t arg_max = kAbsent;  // bits [batch][product positions][out], where it stands before the norm
};

struct PaperLayout {
  CommonLayout common;
  std::vector<PaperBlockLayout> blocks;
  size_t map_a = kAbsent;    // float16: Y; the gradient that enters a block, then the one that leaves it
  size_t map_b = kAbsent;    // float16: pooled Y; the gradient of Y
  size_t sums = kAbsent;     // float64 [2][most channels]
  size_t terms = kAbsent;    // float32 [3][most channels]
  std::vector<size_t> maps;  // float32, one a thread: gradients of the inputs of some samples
  size_t map_size = 0;       // numbers in each
};

PaperLayout lay_out_paper_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                                 int num_threads);

class PaperEngine final : public LayerwiseEngine {
 public:
  PaperEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads);

  void initialise(uint64_t seed) override;
  void reset(uint64_t seed) override;
  // Rounded to nearest; a negative weight too small for float16 stays negative.
  // [out][fan-in].
  void write_weights(size_t block, const float* values);

  // +-1, of the last step, until the next one.
  void read_weight_gradient(size_t block, float* out) const;
  const float* beta_gradient(size_t block) const { return at<float>(layout_.blocks[block].beta_grad); }
  uint16_t* weights(size_t block) { return at<uint16_t>(layout_.blocks[block].weights); }
  float* beta(size_t block) { return at<float>(layout_.blocks[block].beta); }
  float* running_mean(size_t block) { return at<float>(layout_.blocks[block].running_mean); }
  float* running_mean_abs_dev(size_t block) { return at<float>(layout_.blocks[block].running_mean_abs_dev); }

 private:
  static constexpr int kRowsAtOnce = 16;  // rows of a map widened at once

  PaperEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
              PaperLayout layout);

  void forward(int count, bool training) override;
  void set_top_gradient(size_t index, float value) override {
    at<uint16_t>(layout_.map_a)[index] = to_half_saturating(value);
  }
  void backward_block(size_t block) override;
  void update_block(size_t block, float step_scale) override;
  float loss_divisor() const override { return 1.0f; }

  size_t words(size_t block) const;  // of a position's channels
  // What the first layer's products are divided by, against those of the other presets.
  static float unit(size_t block) { return block == 0 ? 255.0f : 1.0f; }

  // Ways to read operands, for src/layerwise/products_inl.h.
  auto inputs_of(size_t block) const;
  auto weights_of(size_t block) const;
  auto gradients_of(size_t block) const;

  void multiply(size_t block, int count);
  void pool_products(size_t block, int count);
  void pool_signs(size_t block, int count);
  void normalise(size_t block, int count, bool training, const uint16_t* y);
  void find_statistics(size_t block, int rows, int first, int some, const uint16_t* y);
  void emit(size_t block, int rows, int first, int some, bool training, const uint16_t* y);
  // Calls work(first row, rows, values [rows][some]) for channels first .. first + some of a map.
  template <typename Work>
  void widen_rows(const uint16_t* map, int channels, int rows, int first, int some, Work work) const;
  void route_to_positive(size_t block);
  void route_by_mask(size_t block);
  void norm_gradient(size_t block, const uint16_t* grad, uint16_t* grad_y);
  void find_weight_gradient(size_t block);
  void find_input_gradient(size_t block);
  void sum_input_gradient(size_t block);

  PaperLayout layout_;
};

}  // namespace bitfleet
