// The preset `standard` for residual networks: Algorithm 1 of Wang et al., arXiv:2102.04270, in float32 throughout,
// with a stem, shortcuts and a head of real weights as they have them.
//
// Forward, with the stream s of real numbers: s' = s + X', X' = norm(sgn(s) sgn(W)), where a shortcut gives
// s' = norm(pool(s) R) + X'. Norms are those of standard_engine.h. Backward: dX' is ds', and
// ds = ds' + f(s) (dY sgn(W)^T), with f(s) = 1 where |s| <= 1 and 0 elsewhere, or ApproxSign's max(2 - 2 |s|, 0).
// Binary weights are trained as in standard_engine.h, all others and beta by Adam, without clipping.
//
// It keeps the variables of the published memory model (bnncore/memory.py), in the published types: every X, the pooled
// stream that a shortcut reads, the map in front of the stem's pool, all dW until the update. Leaner than the model,
// where that comes by itself: the input stays in bytes, and in place of the bits of the streams' signs there is one
// working stream, beside the gradients of units, which are smaller than the model's widest: a stage's streams are sums
// of kept X, added again in the same order. What the model leaves out: the stem's second norm, running statistics, the
// moments of beta and the bias, and the operands of the products (scratch).
#pragma once

#include <string>
#include <vector>

#include "bnncore/residual_engine.h"
#include "bnncore/standard_layers.h"

namespace bitfleet {

struct StandardUnitLayout {
  WeightLayout weights;
  L2NormLayout norm;
  WeightLayout shortcut;  // absent where the unit has none, as are the next two
  L2NormLayout shortcut_norm;
  size_t pooled = kAbsent;  // float32 [batch][positions][in channels]: what the shortcut's convolution reads
};

struct StandardResidualLayout {
  CommonLayout common;
  WeightLayout stem, dense, bias;
  L2NormLayout stem_norm, second_norm;
  size_t pool_input = kAbsent;  // float32 [batch][product positions][channels]: behind relu, where a pool follows it
  size_t stem_out = kAbsent;    // float32 [batch][positions][channels]: the first stream; perhaps a norm's output
  std::vector<StandardUnitLayout> units;  // by block; the first is of the stem, and absent
  size_t grad = kAbsent;                  // float32 [batch][...]: the gradient of the stream
  size_t work = kAbsent;                  // float32 [batch][...]: the stream; behind it and in its place see unit_work
  size_t features = kAbsent, grad_features = kAbsent;  // float32 [batch][channels]
  size_t logits = kAbsent, grad_logits = kAbsent;      // float32 [batch][classes]
  std::vector<size_t> maps;  // one a thread, float32: the gradients of what a few samples' convolutions read
  NormScratch norms;
};

// The stem's convolution, the units', and the head's dense layer.
std::vector<BlockSpec> standard_residual_blocks(const ResidualSpec& network);

StandardResidualLayout lay_out_standard_residual(const ResidualSpec& network, const OptimizerParams& optimizer,
                                                 int batch_size, int num_threads);

// Block 0 is the stem, the last one the head, those between are the units.
class StandardResidualEngine final : public StandardLayers {
 public:
  StandardResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size, int num_threads);

  void initialise(uint64_t seed) override;
  void reset(uint64_t seed) override;

  int input_features() const { return network_.stem.conv.in_features(); }

 private:
  // Where a unit's backward pass works, at the place of the stream that the forward pass ended with.
  struct UnitWork {
    float* grad_y;         // [batch][positions][out channels]
    float* stream;         // what the unit read
    float* shortcut_grad;  // [batch][positions][out channels], with a shortcut
  };

  StandardResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size, int num_threads,
                         StandardResidualLayout layout);

  const UnitSpec& unit(size_t block) const { return network_.units[block - 1]; }
  const StandardUnitLayout& unit_layout(size_t block) const { return layout_.units[block]; }
  bool is_head(size_t block) const { return block + 1 == block_count(); }
  UnitWork unit_work(size_t block) const;

  void forward(int count, bool training) override;
  void set_top_gradient(size_t index, float value) override { at<float>(layout_.grad_logits)[index] = value; }
  void backward_block(size_t block) override;
  void update_block(size_t block, float step_scale) override;

  void forward_stem(int count, bool training);
  void rectify_and_pool(int count, float* out);
  void forward_unit(size_t block, int count, bool training);
  void pool_stream(size_t block, int count, const float* stream);
  void forward_head(int count);

  void backward_head();
  void backward_unit(size_t block);
  void restore_stream(size_t block, float* stream);
  // Into the gradient of the stream that a unit with a shortcut reads, from that of its products.
  void backward_shortcut(size_t block, const float* grad_y);
  void backward_stem();
  void unpool_stem(const float* grad, float* out);

  ResidualSpec network_;
  StandardResidualLayout layout_;
};

}  // namespace bitfleet
