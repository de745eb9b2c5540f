// The memory plan of a residual network: what stands beside its binary convolutions.
#include "../engine/layout.h"

#include <algorithm>

#include "bnncore/residual_engine.h"
#include "planes.h"

namespace bitfleet {

namespace {

constexpr uint32_t kBackward = kNormalise | kWeights | kInputs;
constexpr uint32_t kStep = kForward | kLoss | kBackward;

int64_t extent(size_t value) { return static_cast<int64_t>(value); }

// A parameter, with the moments that training needs.
RealLayout add_real(MemoryPlan& plan, const std::string& name, const std::string& role,
                    const std::vector<int64_t>& shape, bool trains) {
  RealLayout layout{};
  layout.value = plan.add(name, role, "float32", shape, kPersistent);
  if (!trains) return layout;
  const std::string moments = role == "norm" ? role : "momenta";
  layout.mean = plan.add(name + "_mean", moments, "float32", shape, kPersistent);
  layout.square = plan.add(name + "_square", moments, "float32", shape, kPersistent);
  return layout;
}

NormLayout add_norm(MemoryPlan& plan, const std::string& name, int channels, bool trains) {
  NormLayout layout{};
  layout.beta = add_real(plan, name + ".beta", "norm", {channels}, trains);
  layout.running_mean = plan.add(name + ".mean", "norm", "float32", {channels}, kPersistent);
  layout.running_mean_abs_dev = plan.add(name + ".mean_abs_dev", "norm", "float32", {channels}, kPersistent);
  return layout;
}

size_t stream_stride(int batch_size, int positions) {
  return round_up(static_cast<size_t>(batch_size) * static_cast<size_t>(positions), 16);
}

// The most that any part of a thread's scratch needs.
struct Sizes {
  size_t planes = 0, sums = 0, terms = 0, dots = 0, integers = 0, grad_row = 0, staged = 0, shortcut_grad = 0,
         shortcut_y = 0;

  void fit_stem(const StemSpec& stem, size_t rows) {
    integers = stem.conv.num_weights();
    planes = stem_planes(stem.conv).size();
    sums = static_cast<size_t>(stem.conv.conv_width);
    terms = static_cast<size_t>(stem.conv.fan_in());
    dots = rows * terms;
    grad_row = static_cast<size_t>(stem.conv.conv_positions());
  }

  void fit_unit(const UnitSpec& unit, int batch_size) {
    size_t bytes = static_cast<size_t>(unit.conv.in_features()) * sizeof(int32_t);
    if (unit.has_shortcut) {
      const BlockSpec& conv = unit.shortcut.conv;
      const size_t in = static_cast<size_t>(conv.in_channels), out = static_cast<size_t>(conv.out_channels);
      const size_t positions = static_cast<size_t>(conv.conv_positions());
      integers = std::max(integers, conv.num_weights());
      planes = std::max(planes, 2 * in * positions);
      sums = std::max(sums, 2 * positions);
      terms = std::max({terms, in, out});
      dots = std::max(dots, static_cast<size_t>(kTileRows) * in);
      grad_row = std::max(grad_row, positions);
      shortcut_grad = std::max(shortcut_grad, out * stream_stride(batch_size, conv.conv_positions()));
      shortcut_y = std::max(shortcut_y, static_cast<size_t>(kTileRows) *
                                            stream_stride(batch_size, conv.conv_positions()) * sizeof(int32_t));
      bytes += shortcut_staged(conv).bytes;
    }
    staged = std::max(staged, bytes);
  }
};

void resolve(const MemoryPlan& plan, size_t& index) { index = plan.offset(index); }

void resolve(const MemoryPlan& plan, RealLayout& real) {
  for (size_t* field : {&real.value, &real.mean, &real.square}) resolve(plan, *field);
}

void resolve(const MemoryPlan& plan, NormLayout& norm) {
  resolve(plan, norm.beta);
  resolve(plan, norm.running_mean);
  resolve(plan, norm.running_mean_abs_dev);
}

}  // namespace

std::vector<BlockSpec> residual_blocks(const ResidualSpec& network) {
  BlockSpec stem{};
  stem.linear = network.stem.conv.linear;
  stem.norm = network.stem.conv.norm;
  stem.in_height = stem.conv_height = network.stem.out_height;
  stem.in_width = stem.conv_width = network.stem.out_width;
  stem.out_channels = network.stem.conv.out_channels;
  stem.kernel_height = stem.kernel_width = stem.stride = stem.pool_height = stem.pool_width = 1;
  std::vector<BlockSpec> blocks{stem};
  for (const UnitSpec& unit : network.units) blocks.push_back(unit.conv);
  return blocks;
}

ResidualLayout lay_out_residual(const ResidualSpec& network, const OptimizerParams& optimizer, int batch_size,
                                int num_threads) {
  const std::vector<BlockSpec> blocks = residual_blocks(network);
  const StemSpec& stem = network.stem;
  ResidualLayout layout{};
  Sizes sizes{};
  const size_t rows = static_cast<size_t>(stem_rows(stem.conv, batch_size));
  sizes.fit_stem(stem, rows);
  size_t map = static_cast<size_t>(blocks[0].conv_positions()) * static_cast<size_t>(blocks[0].out_channels);
  for (const UnitSpec& unit : network.units) {
    sizes.fit_unit(unit, batch_size);
    map = std::max(map, static_cast<size_t>(unit.conv.in_features()));
  }
  for (const UnitSpec& unit : network.units) {
    map = std::max(map, static_cast<size_t>(unit.conv.conv_positions()) * static_cast<size_t>(unit.conv.out_channels));
  }
  const size_t conv_stride = stream_stride(batch_size, stem.conv.conv_positions());
  const size_t out_stride = stream_stride(batch_size, stem.out_positions());

  LayoutExtras extras{};
  extras.input_features = stem.conv.in_features();
  extras.classes = network.classes;
  extras.num_scales = 2 * blocks.size() + 1;
  extras.gradient_stride = map;
  extras.y_bytes = std::max(rows * conv_stride * sizeof(int16_t), sizes.shortcut_y);
  extras.grad_t_bytes = stem.pools ? rows * conv_stride : 0;
  extras.staged_bytes = sizes.staged;
  const bool trains = optimizer.kind != OptimizerKind::kFrozen;
  const uint32_t forward = kForward | (trains ? 0u : uint32_t{kEvaluateAll});
  extras.add_entries = [&](MemoryPlan& plan) {
    const auto add_weights = [&](const BlockSpec& conv) {
      return add_real(plan, conv.linear + ".weight", "weights", {conv.out_channels, conv.fan_in()}, trains);
    };
    const auto add_stream = [&](int stage, int channels, int positions) {
      const size_t stride = stream_stride(batch_size, positions);
      layout.streams.push_back({plan.add("stream" + std::to_string(stage), "activations", "int16",
                                         {channels, extent(stride)}, forward | (trains ? kStep : 0u)),
                                stride});
    };
    layout.stem = add_weights(stem.conv);
    if (!stem.second_norm.empty()) {
      layout.second_norm = add_norm(plan, stem.second_norm, stem.conv.out_channels, trains);
    }
    layout.shortcuts.resize(blocks.size());
    layout.shortcut_norms.resize(blocks.size());
    add_stream(0, stem.conv.out_channels, stem.out_positions());
    for (size_t i = 0; i < network.units.size(); ++i) {
      const UnitSpec& unit = network.units[i];
      if (!unit.has_shortcut) continue;
      layout.shortcuts[i + 1] = add_weights(unit.shortcut.conv);
      layout.shortcut_norms[i + 1] = add_norm(plan, unit.shortcut.conv.norm, unit.conv.out_channels, trains);
      add_stream(unit.stage, unit.conv.out_channels, unit.conv.conv_positions());
    }
    const std::vector<int64_t> dense = {network.classes, network.features()};
    layout.dense = add_real(plan, network.dense + ".weight", "weights", dense, trains);
    layout.bias = add_real(plan, network.dense + ".bias", "weights", {network.classes}, trains);
    layout.integers =
        plan.add("real_weights", "scratch", "int16", {extent(sizes.integers)}, forward | (trains ? kStep : 0u));
    layout.features = plan.add("features", "activations", "float32", {network.features(), batch_size}, forward | kLoss);
    if (trains) {
      layout.grad_y = plan.add("gradient_y", "gradients", "int8", {batch_size, extent(round_up(map, 16))}, kBackward);
      if (sizes.shortcut_grad > 0) {
        layout.shortcut_grad =
            plan.add("shortcut_gradient", "gradients", "int8", {extent(sizes.shortcut_grad)}, kBackward);
      }
      layout.grad_logits = plan.add("grad_logits", "gradients", "float32", {batch_size, network.classes}, kLoss);
      layout.grad_features = plan.add("grad_features", "gradients", "float32", {batch_size, network.features()}, kLoss);
    }
    for (int member = 0; member < num_threads; ++member) {
      const auto add = [&](const char* part, const char* dtype, size_t count, uint32_t phases) {
        return plan.add("scratch" + std::to_string(member) + "." + part, "scratch", dtype, {extent(count)}, phases, 0,
                        member);
      };
      const uint32_t phases = forward | (trains ? uint32_t{kNormalise} : 0u);
      ResidualScratch s{};
      s.planes = add("real_planes", "int16", sizes.planes, phases);
      s.sums = add("real_sums", "int32", sizes.sums, phases);
      s.offsets = add("real_offsets", "int32", sizes.terms, phases);
      s.pooled = add("stem_pooled", "int16", stem.pools ? out_stride : 1, phases);
      s.choice = add("stem_arg_max", "uint8", stem.pools ? out_stride : 1, phases);
      s.inner = add("stem_inner", "int16", out_stride, phases);
      if (trains) {
        s.dots = add("real_gradients", "int64", sizes.dots, kNormalise);
        s.grad = add("stem_gradient", "int8", rows * out_stride, kNormalise);
        s.grad_row = add("real_gradient_rows", "int16", sizes.grad_row, kNormalise);
      }
      layout.scratch.push_back(s);
    }
  };
  layout.engine = lay_out_engine(blocks, optimizer, batch_size, num_threads, /*keep_products=*/false, &extras);

  const MemoryPlan& plan = layout.engine.plan;
  for (StreamLayout& s : layout.streams) resolve(plan, s.values);
  for (RealLayout* r : {&layout.stem, &layout.dense, &layout.bias}) resolve(plan, *r);
  for (RealLayout& r : layout.shortcuts) resolve(plan, r);
  for (NormLayout& n : layout.shortcut_norms) resolve(plan, n);
  resolve(plan, layout.second_norm);
  for (size_t* field : {&layout.grad_y, &layout.shortcut_grad, &layout.integers, &layout.features, &layout.grad_logits,
                        &layout.grad_features}) {
    resolve(plan, *field);
  }
  for (ResidualScratch& s : layout.scratch) {
    for (size_t* field :
         {&s.planes, &s.sums, &s.offsets, &s.dots, &s.pooled, &s.choice, &s.inner, &s.grad, &s.grad_row}) {
      resolve(plan, *field);
    }
  }
  // Block 0 has no weights: places for none of them, which pointers may be made of.
  BlockLayout& first = layout.engine.blocks[0];
  first.latent = first.momentum = first.square = first.packed = 0;
  layout.stem_norm = norm_of(first);
  return layout;
}

}  // namespace bitfleet
