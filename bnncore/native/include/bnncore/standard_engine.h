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

#include <vector>

#include "bnncore/standard_layers.h"

namespace bitfleet {

struct StandardBlockLayout {
  WeightLayout weights;
  L2NormLayout norm;        // the logits in the last block
  size_t pooled = kAbsent;  // float32 [batch][out positions][out]: signs, where the pool follows them
  size_t mask = kAbsent;    // float32 [batch][product positions][out]: 1 at the arg-max of a pool in front of the norm
};

struct StandardLayout {
  CommonLayout common;
  std::vector<StandardBlockLayout> blocks;
  // float32: Y in front of a pool; the gradient that enters a block, then the one that leaves it.
  size_t map_a = kAbsent;
  size_t map_b = kAbsent;  // float32: the gradient of Y
  NormScratch norms;
};

StandardLayout lay_out_standard_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer,
                                       int batch_size, int num_threads);

class StandardEngine final : public StandardLayers {
 public:
  StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads);

  void initialise(uint64_t seed) override;
  void reset(uint64_t seed) override;
  // [out][fan-in].
  void write_weights(size_t block, const float* values);

  // Of the last step, until the next one.
  void read_weight_gradient(size_t block, float* out) const;
  const float* beta_gradient(size_t block) const { return at<float>(layout_.blocks[block].norm.beta_grad); }
  float* weights(size_t block) { return at<float>(layout_.blocks[block].weights.values); }
  float* beta(size_t block) { return at<float>(layout_.blocks[block].norm.beta); }
  float* running_mean(size_t block) { return at<float>(layout_.blocks[block].norm.running_mean); }
  float* running_mean_abs_dev(size_t block) { return at<float>(layout_.blocks[block].norm.running_mean_abs_dev); }

 private:
  StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
                 StandardLayout layout);

  void forward(int count, bool training) override;
  void set_top_gradient(size_t index, float value) override { at<float>(layout_.map_a)[index] = value; }
  void backward_block(size_t block) override;
  void update_block(size_t block, float step_scale) override;

  // What block `block` > 0 reads.
  auto signs_below(size_t block) const {
    const StandardBlockLayout& below = layout_.blocks[block - 1];
    const bool pooled = blocks_[block - 1].pool == Pool::kAfterSign;
    return signs_as_inputs(at<float>(pooled ? below.pooled : below.norm.x), blocks_[block].in_channels);
  }
  auto weights_of(size_t block) const { return signs_as_weights(layout_.blocks[block].weights, blocks_[block]); }

  void multiply_block(size_t block, int count, float* y);
  void pool_products(size_t block, int count);
  static void mark_first_largest(const BlockSpec& spec, const float* y, const float* largest, float* mask);
  void pool_signs(size_t block, int count);
  void route_to_positive(size_t block);
  void route_by_mask(size_t block);
  void block_norm_gradient(size_t block, const float* grad, float* grad_y);
  void find_input_gradient(size_t block);

  StandardLayout layout_;
};

}  // namespace bitfleet
