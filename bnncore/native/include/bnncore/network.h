// What the engine is told: the network's blocks and the optimizer's constants. Python validates both first.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bitfleet {

// Where a block pools, if it does.
enum class Pool { kNone, kBeforeNorm, kAfterSign };

// Weights (a convolution, or a dense layer, which is the convolution whose kernel is its whole input map)
// -> [max pool] -> L1BatchNorm -> Sign -> [max pool], or -> softmax cross-entropy in the last block.
//
// Maps are [height][width][channels]. A position of a map is its pixel's number, row by row.
struct BlockSpec {
  std::string linear;
  std::string norm;
  int in_height, in_width, in_channels;
  int out_channels;
  int kernel_height, kernel_width;
  int stride;
  int pad_height, pad_width;    // rows above and columns left of the map that count as 0
  int conv_height, conv_width;  // map of the products
  Pool pool;
  int pool_height, pool_width;  // window and stride; what is left over at the right and below is dropped

  int taps() const { return kernel_height * kernel_width; }
  int fan_in() const { return taps() * in_channels; }
  int in_positions() const { return in_height * in_width; }
  int in_features() const { return in_positions() * in_channels; }
  int conv_positions() const { return conv_height * conv_width; }
  // The map with all the padding that its kernels read, and perhaps less at the right and below.
  int padded_height() const { return (conv_height - 1) * stride + kernel_height; }
  int padded_width() const { return (conv_width - 1) * stride + kernel_width; }
  int window() const { return pool_height * pool_width; }
  int pooled_height() const { return conv_height / pool_height; }
  int pooled_width() const { return conv_width / pool_width; }
  int pooled_positions() const { return pooled_height() * pooled_width(); }
  // The map that is normalised, and the one that leaves the block.
  int norm_positions() const { return pool == Pool::kBeforeNorm ? pooled_positions() : conv_positions(); }
  int out_positions() const { return pool == Pool::kNone ? conv_positions() : pooled_positions(); }
  size_t num_weights() const { return static_cast<size_t>(fan_in()) * static_cast<size_t>(out_channels); }
};

// kFrozen keeps the weights' bits and nothing else: it evaluates, and cannot train.
enum class OptimizerKind { kLatent8, kLatent8Momentum, kBop, kAdam, kSgd, kFrozen };

// Latent weights are float32, and weight gradients count in real units.
constexpr bool is_float(OptimizerKind kind) { return kind == OptimizerKind::kAdam || kind == OptimizerKind::kSgd; }

// Field by field as in bnncore/optimizer.py, which documents units and sources.
struct OptimizerParams {
  OptimizerKind kind;
  float step_size;
  float momentum;
  float momentum_unit;
  float gamma;
  float threshold;
  float range;
  float beta1;
  float beta2;
  float epsilon;
  float beta_step_size;
  int32_t init_limit;
  int32_t normaliser_steps;
  float headroom;
  float scale_decay;
};

}  // namespace bitfleet
