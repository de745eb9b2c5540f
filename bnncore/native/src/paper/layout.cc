// The memory plan of the preset `paper`.
#include <algorithm>

#include "../layerwise/patches.h"
#include "bnncore/packing.h"
#include "bnncore/paper_engine.h"

namespace bitfleet {

namespace {

size_t add_bits(MemoryPlan& plan, const std::string& name, const char* role, std::vector<int64_t> shape) {
  shape.back() = words_for(static_cast<int>(shape.back()));
  return plan.add(name, role, "uint64", std::move(shape), kPersistent);
}

}  // namespace

PaperLayout lay_out_paper_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                                 int num_threads) {
  check_optimizer(optimizer);
  PaperLayout layout{};
  MemoryPlan& plan = layout.common.plan;
  int64_t largest_a = 0, largest_b = 0, most_channels = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockSpec& spec = blocks[i];
    const int64_t out = spec.out_channels;
    const std::vector<int64_t> matrix = {out, spec.fan_in()};
    PaperBlockLayout b{};
    b.weights = plan.add(spec.linear + ".latent", "weights", "float16", matrix, kPersistent);
    b.first_moment = plan.add(spec.linear + ".mean", "momenta", "float16", matrix, kPersistent);
    if (optimizer.kind == OptimizerKind::kAdam) {
      b.second_moment = plan.add(spec.linear + ".square", "momenta", "float16", matrix, kPersistent);
    }
    b.weight_grad = add_bits(plan, spec.linear + ".gradient", "gradients", matrix);
    const auto add = [&](const char* name, const char* role) {
      return plan.add(spec.norm + name, role, "float32", {out}, kPersistent);
    };
    b.beta = add(".beta", "norm");
    b.beta_first = add(".beta_mean", "norm");
    b.beta_second = add(".beta_square", "norm");
    b.running_mean = add(".mean", "norm");
    b.running_mean_abs_dev = add(".mean_abs_dev", "norm");
    b.mean = add(".batch_mean", "activations");
    b.deviation = add(".batch_deviation", "activations");
    b.omega = add(".omega", "activations");
    b.beta_grad = add(".beta_gradient", "gradients");
    const std::vector<int64_t> normalised = {batch_size, spec.norm_positions(), out};
    b.negative = add_bits(plan, spec.norm + ".negative", "activations", normalised);
    b.outside = add_bits(plan, spec.norm + ".outside", "activations", normalised);
    if (spec.pool == Pool::kAfterSign) {
      b.pooled = add_bits(plan, spec.norm + ".pooled", "activations", {batch_size, spec.pooled_positions(), out});
    }
    if (spec.pool == Pool::kBeforeNorm) {
      b.arg_max = add_bits(plan, spec.norm + ".arg_max", "activations", {batch_size, spec.conv_positions(), out});
    }
    layout.blocks.push_back(b);
    const int64_t products = int64_t{spec.conv_positions()} * out, features = spec.in_features();
    largest_a = std::max({largest_a, products, i > 0 ? features : 0});
    largest_b = std::max(largest_b, products);
    most_channels = std::max(most_channels, out);
    if (i > 0 && !covers_map(spec)) layout.map_size = std::max(layout.map_size, static_cast<size_t>(features));
  }
  CommonLayout& common = layout.common;
  common.input = plan.add("input", "input", "uint8", {batch_size, blocks[0].in_features()}, kPersistent);
  common.labels = plan.add("labels", "input", "int32", {batch_size}, kPersistent);
  common.logits =
      plan.add("logits", "activations", "float32", {batch_size, blocks.back().out_channels}, kForward | kLoss);
  layout.map_a = plan.add("gradient_or_product", "gradients", "float16", {batch_size, largest_a}, kPersistent);
  layout.map_b =
      plan.add("grad_y", "gradients", "float16", {batch_size, largest_b}, kForward | kNormalise | kWeights | kInputs);
  layout.sums = plan.add("channel_sums", "scratch", "float64", {2, most_channels}, kForward | kNormalise);
  layout.terms = plan.add("channel_terms", "scratch", "float32", {3, most_channels}, kForward | kNormalise);
  for (int member = 0; member < num_threads; ++member) {
    common.products.push_back(add_products(plan, member));
    if (layout.map_size > 0) {
      layout.maps.push_back(plan.add("thread" + std::to_string(member) + ".map", "scratch", "float32",
                                     {static_cast<int64_t>(layout.map_size)}, kInputs, 0, member));
    }
  }
  plan.lay_out();

  for (PaperBlockLayout& b : layout.blocks) {
    for (size_t* field : {&b.weights, &b.first_moment, &b.second_moment, &b.weight_grad, &b.beta, &b.beta_first,
                          &b.beta_second, &b.beta_grad, &b.mean, &b.deviation, &b.omega, &b.running_mean,
                          &b.running_mean_abs_dev, &b.negative, &b.outside, &b.pooled, &b.arg_max}) {
      *field = plan.offset(*field);
    }
  }
  resolve_products(plan, common.products);
  for (size_t& map : layout.maps) map = plan.offset(map);
  for (size_t* field :
       {&common.input, &common.labels, &common.logits, &layout.map_a, &layout.map_b, &layout.sums, &layout.terms}) {
    *field = plan.offset(*field);
  }
  return layout;
}

}  // namespace bitfleet
