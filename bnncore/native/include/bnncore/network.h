// What the engine is told: the network's blocks and the optimizer's constants. Python validates both first.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bitfleet {

// BinaryDense -> L1BatchNorm -> Sign, or -> softmax cross-entropy in the last block.
struct BlockSpec {
  std::string dense;
  std::string norm;
  int in_features;
  int out_features;
};

enum class OptimizerKind { kLatent8, kLatent8Momentum, kBop, kAdam };

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
