// The memory plan of the preset `standard`.
#include <algorithm>

#include "bnncore/standard_engine.h"

namespace bitfleet {

StandardLayout lay_out_standard_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer,
                                       int batch_size, int num_threads) {
  check_optimizer(optimizer);
  StandardLayout layout{};
  MemoryPlan& plan = layout.common.plan;
  const bool two_moments = optimizer.kind == OptimizerKind::kAdam;
  int64_t largest_a = 0, largest_b = 0, most_channels = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockSpec& spec = blocks[i];
    const int64_t out = spec.out_channels;
    const std::vector<int64_t> matrix = {out, spec.fan_in()};
    StandardBlockLayout b{};
    const auto add = [&](const std::string& name, const char* role, const std::vector<int64_t>& shape) {
      return plan.add(name, role, "float32", shape, kPersistent);
    };
    b.weights.values = add(spec.linear + ".latent", "weights", matrix);
    b.weights.first_moment = add(spec.linear + ".mean", "momenta", matrix);
    if (two_moments) b.weights.second_moment = add(spec.linear + ".square", "momenta", matrix);
    b.weights.gradient = add(spec.linear + ".gradient", "gradients", matrix);
    b.norm = add_l2_norm(plan, spec.norm, batch_size, spec.norm_positions(), spec.out_channels);
    if (spec.pool == Pool::kAfterSign) {
      b.pooled = add(spec.norm + ".pooled", "activations", {batch_size, spec.pooled_positions(), out});
    }
    if (spec.pool == Pool::kBeforeNorm) {
      b.mask = add(spec.norm + ".pool_mask", "activations", {batch_size, spec.conv_positions(), out});
    }
    layout.blocks.push_back(b);
    const int64_t products = int64_t{spec.conv_positions()} * out;
    if (i > 0) largest_a = std::max(largest_a, int64_t{spec.in_features()});
    largest_a = std::max(largest_a, spec.pool == Pool::kBeforeNorm ? products : out);
    largest_b = std::max(largest_b, products);
    most_channels = std::max(most_channels, out);
  }
  CommonLayout& common = layout.common;
  common.input = plan.add("input", "input", "uint8", {batch_size, blocks[0].in_features()}, kPersistent);
  common.labels = plan.add("labels", "input", "int32", {batch_size}, kPersistent);
  layout.map_a = plan.add("gradient_or_product", "gradients", "float32", {batch_size, largest_a}, kPersistent);
  layout.map_b = plan.add("grad_y", "gradients", "float32", {batch_size, largest_b}, kNormalise | kWeights | kInputs);
  layout.norms = add_norm_scratch(plan, static_cast<int>(most_channels));
  for (int member = 0; member < num_threads; ++member) common.products.push_back(add_products(plan, member));
  plan.lay_out();

  for (StandardBlockLayout& b : layout.blocks) {
    resolve(plan, b.weights);
    resolve(plan, b.norm);
    for (size_t* field : {&b.pooled, &b.mask}) *field = plan.offset(*field);
  }
  resolve(plan, layout.norms);
  resolve_products(plan, common.products);
  for (size_t* field : {&common.input, &common.labels, &layout.map_a, &layout.map_b}) {
    *field = plan.offset(*field);
  }
  common.logits = layout.blocks.back().norm.x;
  return layout;
}

}  // namespace bitfleet
