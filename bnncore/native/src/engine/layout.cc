// The memory plan of the engine: one list of everything that training holds.
#include <algorithm>

#include "bnncore/engine.h"
#include "bnncore/packing.h"

namespace bitfleet {

namespace {

constexpr size_t kReadPastInput = 32;  // input_gemm and input_grad load whole vectors at a row's end

BlockLayout add_block(MemoryPlan& plan, const BlockSpec& block, OptimizerKind kind, bool last, int batch_size) {
  BlockLayout layout{};
  const std::vector<int64_t> weights = {block.out_channels, block.fan_in()};
  const std::vector<int64_t> channels = {block.out_channels};
  switch (kind) {
    case OptimizerKind::kLatent8Momentum:
      layout.momentum = plan.add(block.linear + ".momentum", "momenta", "int8", weights, kPersistent);
      [[fallthrough]];
    case OptimizerKind::kLatent8:
      layout.latent = plan.add(block.linear + ".latent", "weights", "int8", weights, kPersistent);
      break;
    case OptimizerKind::kBop:
      layout.packed = plan.add(block.linear + ".packed", "weights", "uint64",
                               {block.out_channels, words_for(block.fan_in())}, kPersistent);
      layout.momentum = plan.add(block.linear + ".average", "momenta", "int8", weights, kPersistent);
      break;
    case OptimizerKind::kAdam:
      layout.latent = plan.add(block.linear + ".latent", "weights", "float32", weights, kPersistent);
      layout.momentum = plan.add(block.linear + ".mean", "momenta", "float32", weights, kPersistent);
      layout.square = plan.add(block.linear + ".square", "momenta", "float32", weights, kPersistent);
      break;
  }
  layout.beta = plan.add(block.norm + ".beta", "norm", "float32", channels, kPersistent);
  layout.beta_mean = plan.add(block.norm + ".beta_mean", "norm", "float32", channels, kPersistent);
  layout.beta_square = plan.add(block.norm + ".beta_square", "norm", "float32", channels, kPersistent);
  layout.running_mean = plan.add(block.norm + ".mean", "norm", "float32", channels, kPersistent);
  layout.running_mean_abs_dev = plan.add(block.norm + ".mean_abs_dev", "norm", "float32", channels, kPersistent);
  if (!last) {
    layout.signs = plan.add(block.norm + ".signs", "activations", "uint64", {batch_size, words_for(block.out_channels)},
                            kPersistent);
  }
  return layout;
}

ScratchLayout add_scratch(MemoryPlan& plan, const std::vector<BlockSpec>& blocks, int batch_size, size_t y_stride,
                          int member) {
  int widest = 0, widest_inner = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    widest = std::max(widest, blocks[i].fan_in());
    if (i > 0) widest_inner = std::max(widest_inner, blocks[i].fan_in());
  }
  const std::string name = "scratch" + std::to_string(member) + ".";
  const auto add = [&](const char* part, const char* dtype, std::vector<int64_t> shape, uint32_t phases) {
    return plan.add(name + part, "scratch", dtype, std::move(shape), phases, 0, member);
  };
  const auto extent = [](size_t value) { return static_cast<int64_t>(value); };
  ScratchLayout layout{};
  layout.y = add("products_y", "int32", {kTileRows, extent(y_stride)}, kForward | kNormalise);
  layout.weights = add("weights", "uint64", {kTileRows, words_for(widest)}, kForward | kNormalise);
  layout.expanded_weights =
      add("expanded_weights", "int8", {extent(input_gemm_scratch(blocks[0].fan_in()))}, kForward | kNormalise);
  layout.bits = add("sign_bits", "uint16", {batch_size}, kForward);
  layout.grad_t = add("grad_y", "int8", {kTileRows, extent(y_stride)}, kNormalise | kWeights);
  layout.expanded =
      add("expanded", "uint8", {extent(std::max(kSignGemmScratch, kInputGradScratch))}, kWeights | kInputs);
  layout.products = add("products", "int32", {kTileRows, kColumnBlock}, kWeights | kInputs);
  if (widest_inner > 0) {
    layout.staged = add("grad_x", "int8", {kTileRows, extent(round_up(widest_inner, kColumnBlock))}, kInputs);
  }
  return layout;
}

// Turns an entry's index, which plan.add returned, into its offset.
void resolve(const MemoryPlan& plan, size_t& index) { index = plan.offset(index); }

}  // namespace

EngineLayout lay_out_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                            int num_threads) {
  EngineLayout layout{};
  MemoryPlan& plan = layout.plan;
  int widest_output = 0;
  int64_t inner_words = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockSpec& block = blocks[i];
    layout.blocks.push_back(add_block(plan, block, optimizer.kind, i + 1 == blocks.size(), batch_size));
    widest_output = std::max(widest_output, block.out_channels);
    if (i > 0) inner_words = std::max(inner_words, int64_t{block.out_channels} * words_for(block.fan_in()));
  }
  layout.gradient_stride = round_up(static_cast<size_t>(widest_output), 16);
  layout.y_stride = round_up(static_cast<size_t>(batch_size), 16);
  layout.scales =
      plan.add("scales", "norm", "uint8", {static_cast<int64_t>(blocks.size() * sizeof(BlockScales))}, kPersistent);
  layout.input = plan.add("input", "input", "uint8", {batch_size, blocks[0].fan_in()}, kPersistent, kReadPastInput);
  layout.labels = plan.add("labels", "input", "int32", {batch_size}, kPersistent);
  layout.logits =
      plan.add("logits", "activations", "float32", {batch_size, blocks.back().out_channels}, kForward | kLoss);
  layout.gradient =
      plan.add("gradient", "gradients", "int8", {batch_size, static_cast<int64_t>(layout.gradient_stride)},
               kLoss | kNormalise | kWeights | kInputs);
  if (inner_words > 0) {
    layout.packed_weights =
        plan.add("packed_weights", "weights", "uint64", {inner_words}, kNormalise | kWeights | kInputs);
  }
  for (int member = 0; member < num_threads; ++member) {
    layout.scratch.push_back(add_scratch(plan, blocks, batch_size, layout.y_stride, member));
  }
  plan.lay_out();

  for (BlockLayout& b : layout.blocks) {
    for (size_t* field : {&b.latent, &b.momentum, &b.square, &b.packed, &b.beta, &b.beta_mean, &b.beta_square,
                          &b.running_mean, &b.running_mean_abs_dev, &b.signs}) {
      resolve(plan, *field);
    }
  }
  for (ScratchLayout& s : layout.scratch) {
    for (size_t* field :
         {&s.y, &s.weights, &s.expanded_weights, &s.bits, &s.grad_t, &s.expanded, &s.products, &s.staged}) {
      resolve(plan, *field);
    }
  }
  for (size_t* field :
       {&layout.input, &layout.labels, &layout.logits, &layout.gradient, &layout.packed_weights, &layout.scales}) {
    resolve(plan, *field);
  }
  return layout;
}

}  // namespace bitfleet
