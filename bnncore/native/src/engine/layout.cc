// The memory plan of the engine: one list of everything that training holds.
#include "layout.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "maps.h"

namespace bitfleet {

namespace {

constexpr size_t kReadPastInput = 64;  // input_gemm and input_grad load whole vectors at a row's end
constexpr size_t kReadPastSigns = kPanelLanes * sizeof(uint64_t);
constexpr size_t kTileBytes = 1700000;   // products of a tile: 8 channels of a batch of 100 maps of 32 x 32
constexpr size_t kPatchBytes = 1 << 15;  // patches gathered at once: they stay in the first cache
// What the backward products may take beside each other: as much as the tile of products takes, whose phase is over
// then, but at least the first (small networks would be slow) and expanded rows at most the second (they should stay
// in the second cache).
constexpr size_t kLeastBudget = 26 << 10;
constexpr size_t kExpandedBytes = 256 << 10;
constexpr size_t kProductsShare = 3;      // of that, what the gradients of some samples' inputs may take
constexpr int kMostSamples = 16;          // samples, or positions of a map, expanded at once for grad_x
constexpr size_t kCacheBytes = 28 << 10;  // where they stay in the first cache

int64_t extent(size_t value) { return static_cast<int64_t>(value); }

uint32_t evaluate_phase(size_t layer) { return uint32_t{kEvaluate} << layer % 4; }

// The batch norm of a block, and the signs behind it.
BlockLayout add_norm(MemoryPlan& plan, const BlockSpec& block, OptimizerKind kind, size_t number, bool last,
                     int batch_size) {
  BlockLayout layout{};
  const std::vector<int64_t> channels = {block.out_channels};
  layout.beta = plan.add(block.norm + ".beta", "norm", "float32", channels, kPersistent);
  if (kind != OptimizerKind::kFrozen) {
    layout.beta_mean = plan.add(block.norm + ".beta_mean", "norm", "float32", channels, kPersistent);
    layout.beta_square = plan.add(block.norm + ".beta_square", "norm", "float32", channels, kPersistent);
  }
  layout.running_mean = plan.add(block.norm + ".mean", "norm", "float32", channels, kPersistent);
  layout.running_mean_abs_dev = plan.add(block.norm + ".mean_abs_dev", "norm", "float32", channels, kPersistent);
  if (!last) {
    layout.signs = plan.add(
        block.norm + ".signs", "activations", "uint64",
        {batch_size, block.out_positions(), words_for(block.out_channels)},
        kind == OptimizerKind::kFrozen ? evaluate_phase(number) | evaluate_phase(number + 1) : uint32_t{kPersistent},
        kReadPastSigns);
  }
  return layout;
}

BlockLayout add_block(MemoryPlan& plan, const BlockSpec& block, const BlockGeometry& geometry, OptimizerKind kind,
                      size_t number, bool last, int batch_size) {
  BlockLayout w{};
  const std::vector<int64_t> weights = {block.out_channels, block.fan_in()};
  switch (kind) {
    case OptimizerKind::kLatent8Momentum:
      w.momentum = plan.add(block.linear + ".momentum", "momenta", "int8", weights, kPersistent);
      [[fallthrough]];
    case OptimizerKind::kLatent8:
      w.latent = plan.add(block.linear + ".latent", "weights", "int8", weights, kPersistent);
      break;
    case OptimizerKind::kBop:
      w.packed = plan.add(block.linear + ".packed", "weights", "uint64",
                          {block.out_channels, extent(geometry.row_words())}, kPersistent);
      w.momentum = plan.add(block.linear + ".average", "momenta", "int8", weights, kPersistent);
      break;
    case OptimizerKind::kFrozen:
      w.packed = plan.add(block.linear + ".packed", "weights", "uint64",
                          {block.out_channels, extent(geometry.row_words())}, kPersistent);
      break;
    case OptimizerKind::kSgd:
      w.latent = plan.add(block.linear + ".latent", "weights", "float32", weights, kPersistent);
      w.momentum = plan.add(block.linear + ".momentum", "momenta", "float32", weights, kPersistent);
      break;
    case OptimizerKind::kAdam:
      w.latent = plan.add(block.linear + ".latent", "weights", "float32", weights, kPersistent);
      w.momentum = plan.add(block.linear + ".mean", "momenta", "float32", weights, kPersistent);
      w.square = plan.add(block.linear + ".square", "momenta", "float32", weights, kPersistent);
      break;
  }
  BlockLayout layout = add_norm(plan, block, kind, number, last, batch_size);
  if (geometry.kept) {
    layout.products = plan.add(block.linear + ".products", "activations", geometry.wide ? "int32" : "int16",
                               {block.out_channels, geometry.y_stride}, kPersistent);
    layout.statistics =
        plan.add(block.linear + ".statistics", "activations", "int64", {block.out_channels, 2}, kPersistent);
  }
  layout.latent = w.latent, layout.momentum = w.momentum, layout.square = w.square, layout.packed = w.packed;
  return layout;
}

// Lines of a panel that holds samples side by side: a sample's words, and zeros for its padding.
size_t abreast_lines(const BlockSpec& block, const BlockGeometry& g) {
  const bool pads = block.pad_height + block.pad_width > 0;
  return static_cast<size_t>(block.in_positions()) * g.segment_words + (pads ? 1 : 0);
}

// Elements of each part of a thread's scratch: the most that any block needs.
struct ScratchSizes {
  size_t input_patches, weight_bits, columns, weight_columns, y, conv_y, offsets, patches, padding, weights,
      expanded_weights, bits, grad_t, choice, grad_rows, position_sums, tap_sums, weight_sums, weight_rows,
      input_operands, grad_x, input_sums, staged;

  void fit(const BlockSpec& block, const BlockGeometry& g, const BlockSpec* below, bool last, int batch_size) {
    const bool first = below == nullptr;
    const auto most = [](size_t& size, size_t needed) { size = std::max(size, needed); };
    const size_t rows = static_cast<size_t>(g.tile_rows), conv = static_cast<size_t>(block.conv_positions());
    const size_t in = static_cast<size_t>(block.in_positions()), fan_in = static_cast<size_t>(block.fan_in());
    const size_t weight_rows_at_once = static_cast<size_t>(g.weight_rows);
    const bool pads = block.pad_height + block.pad_width > 0;
    if (!g.kept) most(y, rows * static_cast<size_t>(g.y_stride) * g.y_bytes());
    most(grad_t, rows * static_cast<size_t>(g.y_stride));
    most(weights, rows * g.row_words());
    if (first) most(expanded_weights, expanded_input_bytes(block, g));
    if (pads) most(padding, rows * conv * g.y_bytes());
    if (block.pool == Pool::kAfterSign) most(patches, rows * static_cast<size_t>(block.pooled_positions()));
    const bool wide_sums = g.weight_grad_shift > 0 || batch_size * block.conv_positions() > kInputGradRun;
    if (pads || g.segments > 1 || (first && wide_sums)) most(tap_sums, static_cast<size_t>(block.taps()));
    if (g.abreast && !g.whole_map) most(conv_y, rows * static_cast<size_t>(g.panel_columns) * g.y_bytes());
    if (block.pool == Pool::kBeforeNorm) {
      most(conv_y, rows * conv * g.y_bytes());
      most(choice, rows * static_cast<size_t>(g.y_stride) * choice_bytes(block));
    }
    if (!first) {
      most(offsets, g.row_words());
      most(patches, (panel_words(block, g) + kPanelLanes) * sizeof(uint64_t));
    } else if (pads) {
      const size_t padded = static_cast<size_t>(block.padded_height()) * static_cast<size_t>(block.padded_width());
      most(patches, padded * static_cast<size_t>(block.in_channels) + kReadPastInput);
    }
    if (!last) {
      most(bits, block.pool == Pool::kAfterSign
                     ? conv
                     : std::min<size_t>(static_cast<size_t>(batch_size) * static_cast<size_t>(block.norm_positions()),
                                        kEmittedAtOnce));
    }
    most(grad_rows, weight_rows_at_once * static_cast<size_t>(g.weight_depth));
    most(position_sums, weight_rows_at_once * (pads ? conv : 1));
    most(weight_sums, weight_rows_at_once * weight_row_bytes(g, first, batch_size * block.conv_positions()));
    if (first) {
      most(weight_bits, kInputGradScratch);
      most(weight_rows, weight_rows_at_once * kColumnBlock * sizeof(int32_t));
      if (!g.whole_map) most(input_patches, kInputGradDepth * fan_in + kReadPastInput);
      return;
    }
    most(columns, static_cast<size_t>(g.weight_depth));
    if (!g.whole_map) most(weight_columns, static_cast<size_t>(g.input_depth));
    most(weight_bits, g.weight_bits_bytes());
    most(weight_rows, weight_rows_at_once * sign_row_bytes(g.weight_depth));
    const size_t samples = g.whole_map ? static_cast<size_t>(g.input_rows) : size_t{1};
    most(input_operands, g.whole_map
                             ? g.input_operand_bytes(block.out_channels)
                             : static_cast<size_t>(block.taps()) * g.input_words * most_sign_bits_bytes(g.input_depth) +
                                   g.input_rows * sign_row_bytes(g.input_depth));
    most(grad_x, (g.whole_map ? samples : in) * g.input_words * kColumnBlock);
    most(input_sums, g.whole_map ? samples : conv + in);
    if (!g.whole_map || below->pool != Pool::kNone) most(staged, samples * static_cast<size_t>(block.in_features()));
  }

  static size_t panel_words(const BlockSpec& block, const BlockGeometry& g) {
    if (g.abreast) return abreast_lines(block, g) * static_cast<size_t>(g.panel_columns);
    return PanelShape(block, g.shifted, g.panel_lines, g.panel_columns).size(g.segment_words);
  }

  static size_t expanded_input_bytes(const BlockSpec& block, const BlockGeometry& g) {
    return g.whole_map ? input_expanded_bytes(1, block.fan_in())
                       : input_expanded_bytes(block.kernel_height, block.kernel_width * block.in_channels);
  }

  // The sums of one output channel's weight gradient.
  static size_t weight_row_bytes(const BlockGeometry& g, bool first, int positions) {
    if (!first) return g.row_words() * kColumnBlock * sizeof(int32_t);
    return positions <= kInputGradRun ? 0 : kColumnBlock * sizeof(int64_t);
  }
};

// As many output channels for the weight gradient, and positions for the gradient of the inputs, as the budget takes.
void share_budget(BlockGeometry& g, const BlockSpec& block, bool first, int batch_size, int num_threads,
                  size_t budget) {
  const int positions = batch_size * block.conv_positions();
  g.weight_depth = std::min(positions, kSignGemmDepth);
  const size_t expanded = first ? 0 : sign_row_bytes(g.weight_depth);
  const size_t row_bytes = expanded + ScratchSizes::weight_row_bytes(g, first, positions);
  const auto fits = [&](int rows) { return rows * expanded <= kExpandedBytes && rows * row_bytes <= budget; };
  const int shared = (block.out_channels + num_threads - 1) / num_threads;
  g.weight_rows = std::min(first ? kInputWeightRows : kWeightRows,
                           static_cast<int>(round_up(static_cast<size_t>(shared), kRowStep)));
  while (g.weight_rows > kRowStep && !fits(g.weight_rows)) g.weight_rows -= kRowStep;
  if (first) return;
  // Equal parts of the outputs, in whole quads.
  const int parts = (block.out_channels + kSignGemmDepth - 1) / kSignGemmDepth;
  g.input_depth = static_cast<int>(round_up(static_cast<size_t>((block.out_channels + parts - 1) / parts), 4));
  const size_t part_bytes = sign_row_bytes(g.input_depth);
  if (g.whole_map) {
    constexpr size_t kWordBytes = kColumnBlock * sizeof(int32_t);
    g.input_words = std::clamp<size_t>(budget / kProductsShare / (kPanelLanes * kWordBytes), 1,
                                       g.joined() ? g.row_words() : g.segment_words);
    const size_t sample_bytes = static_cast<size_t>(parts) * part_bytes + g.input_words * kWordBytes;
    const size_t samples = std::min(
        {budget / sample_bytes, kExpandedBytes / sample_bytes, budget / kProductsShare / (g.input_words * kWordBytes)});
    g.input_rows = std::min(
        batch_size, std::clamp(static_cast<int>(samples) / kPanelLanes * kPanelLanes, kPanelLanes, kMostSamples));
    return;
  }
  g.input_rows = std::min(block.conv_positions(), kMostSamples * part_bytes > kCacheBytes ? kPanelLanes : kMostSamples);
  const size_t word_bytes = static_cast<size_t>(block.in_positions()) * kColumnBlock * sizeof(int32_t) +
                            static_cast<size_t>(block.taps()) * most_sign_bits_bytes(g.input_depth);
  g.input_words = std::clamp<size_t>(budget / word_bytes, 1, g.segment_words);
}

ScratchLayout add_scratch(MemoryPlan& plan, const ScratchSizes& sizes, bool trains, int member) {
  const std::string name = "scratch" + std::to_string(member) + ".";
  const auto add = [&](const char* part, const char* dtype, size_t count, uint32_t phases) {
    if (!trains) phases |= kEvaluateAll;
    return count == 0 ? kAbsent : plan.add(name + part, "scratch", dtype, {extent(count)}, phases, 0, member);
  };
  ScratchLayout layout{};
  layout.y = add("products_y", "uint8", sizes.y, kForward | kNormalise);
  layout.conv_y = add("products_conv", "uint8", sizes.conv_y, kForward | kNormalise);
  layout.offsets = add("offsets", "int32", sizes.offsets, kForward | kNormalise);
  layout.patches = add("patches", "uint8", sizes.patches, kForward | kNormalise);
  layout.padding = add("padding", "uint8", sizes.padding, kForward | kNormalise);
  layout.weights = add("weights", "uint64", trains ? sizes.weights : 0, kForward | kNormalise);
  layout.expanded_weights = add("expanded_weights", "int8", sizes.expanded_weights, kForward | kNormalise);
  layout.bits = add("sign_bits", "uint16", sizes.bits, kForward);
  layout.tap_sums =
      add("tap_sums", "int32", trains || sizes.padding > 0 ? sizes.tap_sums : 0, kForward | kNormalise | kWeights);
  if (!trains) return layout;
  layout.grad_t = add("grad_y", "int8", sizes.grad_t, kNormalise);
  layout.choice = add("arg_max", "uint8", sizes.choice, kNormalise);
  layout.grad_rows = add("grad_y_rows", "int8", sizes.grad_rows, kWeights);
  layout.position_sums = add("position_sums", "int32", sizes.position_sums, kWeights);
  layout.weight_sums = add("grad_weights", "uint8", sizes.weight_sums, kWeights);
  layout.columns = add("columns", "uint64", sizes.columns, kWeights);
  layout.weight_columns = add("weight_columns", "uint64", sizes.weight_columns, kInputs);
  layout.weight_bits = add("expanded_columns", "uint8", sizes.weight_bits, kWeights);
  layout.input_patches = add("input_patches", "uint8", sizes.input_patches, kWeights);
  layout.weight_rows = add("expanded_rows", "uint8", sizes.weight_rows, kWeights);
  layout.input_operands = add("expanded_operands", "uint8", sizes.input_operands, kInputs);
  layout.input_products = add("input_products", "int32", sizes.grad_x, kInputs);
  layout.input_sums = add("input_sums", "int32", sizes.input_sums, kInputs);
  layout.staged = add("grad_x", "int8", sizes.staged, kInputs);
  return layout;
}

// Turns an entry's index, which plan.add returned, into its offset.
void resolve(const MemoryPlan& plan, size_t& index) { index = plan.offset(index); }

// Every field of a struct that has nothing but indices.
template <typename Layout>
void resolve_all(const MemoryPlan& plan, Layout& layout) {
  size_t fields[sizeof(Layout) / sizeof(size_t)];
  static_assert(std::is_trivially_copyable_v<Layout> && sizeof(fields) == sizeof(Layout));
  std::memcpy(fields, &layout, sizeof(fields));
  for (size_t& field : fields) resolve(plan, field);
  std::memcpy(&layout, fields, sizeof(fields));
}

// As many positions as fit: whole maps, else lines of them in equal parts, else parts of a line.
void shape_panel(BlockGeometry& g, const BlockSpec& block, int batch_size) {
  constexpr int kLeast = 4 * kPanelLanes;
  const int batch = static_cast<int>(round_up(static_cast<size_t>(batch_size), kPanelLanes));
  const int fit = static_cast<int>(kPatchBytes / (abreast_lines(block, g) * sizeof(uint64_t)));
  // Where maps have few positions, vectors of samples have fewer lanes to spare, which must make up for taking the
  // products apart again.
  const auto lanes = [](int count) { return (count + kPanelLanes - 1) / kPanelLanes; };
  g.abreast =
      g.whole_map || (block.pool != Pool::kBeforeNorm && fit >= kLeast &&
                      5 * lanes(batch_size) * block.conv_positions() < 4 * lanes(block.conv_positions()) * batch_size);
  if (g.abreast) {
    g.panel_columns = std::min(std::clamp(fit / kPanelLanes * kPanelLanes, kLeast, kPatchPositions), batch);
    return;
  }
  g.shifted = block.stride > 1 || (block.kernel_width > 1 && block.conv_width % kPanelLanes != 0);
  const auto fits = [&](int lines, int columns) {
    const PanelShape shape(block, g.shifted, lines, columns);
    return shape.size(g.segment_words) * sizeof(uint64_t) <= kPatchBytes && lines * columns <= kPatchPositions;
  };
  g.panel_lines = block.conv_height;
  g.panel_columns = block.conv_width;
  while (g.panel_lines > 1 && !fits(g.panel_lines, g.panel_columns)) {
    const int parts = (block.conv_height + g.panel_lines - 1) / g.panel_lines + 1;
    g.panel_lines = std::min(g.panel_lines - 1, (block.conv_height + parts - 1) / parts);
  }
  while (g.panel_columns > kLeast && !fits(1, g.panel_columns)) {
    g.panel_columns = static_cast<int>(round_up(static_cast<size_t>(g.panel_columns) / 2, kPanelLanes));
  }
}

// A stem's map has signs, and a stream beside them.
BlockGeometry stem_geometry(const BlockSpec& block, int batch_size) {
  BlockGeometry g{};
  g.y_stride = static_cast<int>(round_up(static_cast<size_t>(batch_size) * block.conv_positions(), 16));
  g.tile_rows = kTileRows;
  return g;
}

BlockGeometry block_geometry(const BlockSpec& block, bool is_first, bool takes_whole_maps, int batch_size) {
  BlockGeometry g{};
  const int conv = block.conv_positions();
  g.whole_map = takes_whole_maps && conv == 1 && block.pad_height + block.pad_width == 0 &&
                block.kernel_height == block.in_height && block.kernel_width == block.in_width;
  g.y_stride = static_cast<int>(round_up(static_cast<size_t>(batch_size) * block.norm_positions(), 16));
  g.wide = (is_first ? 255 : 1) * block.fan_in() > kXnorDepth;
  g.tile_rows = kTileRows;
  while (g.tile_rows > 4 && g.y_bytes() * g.tile_rows * g.y_stride > kTileBytes) g.tile_rows /= 2;
  g.segments = is_first ? 1 : block.taps();
  g.segment_width = is_first ? block.fan_in() : block.in_channels;
  g.segment_words = static_cast<size_t>(words_for(g.segment_width));
  if (!is_first) shape_panel(g, block, batch_size);
  if (is_first) {
    const int64_t largest = int64_t{127} * 255 * batch_size * conv;
    while (largest >> g.weight_grad_shift > INT32_MAX) ++g.weight_grad_shift;
  }
  return g;
}

}  // namespace

EngineLayout lay_out_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                            int num_threads, bool keep_products, const LayoutExtras* extras) {
  EngineLayout layout{};
  MemoryPlan& plan = layout.plan;
  size_t largest_map = 0, inner_words = 0, budget = kLeastBudget;
  ScratchSizes sizes{};
  const bool trains = optimizer.kind != OptimizerKind::kFrozen;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockSpec& block = blocks[i];
    const bool first = i == 0, last = i + 1 == blocks.size();
    if (first && extras != nullptr) {
      layout.geometry.push_back(stem_geometry(block, batch_size));
      layout.blocks.push_back(add_norm(plan, block, optimizer.kind, i, last, batch_size));
      continue;
    }
    layout.geometry.push_back(block_geometry(block, first, extras == nullptr, batch_size));
    const BlockGeometry& geometry = layout.geometry.back();
    layout.geometry.back().kept = keep_products && trains && geometry.whole_map && block.pool == Pool::kNone;
    layout.blocks.push_back(add_block(plan, block, geometry, optimizer.kind, i, last, batch_size));
    budget = std::max(budget, geometry.y_bytes() * geometry.tile_rows * geometry.y_stride);
    largest_map = std::max(largest_map, static_cast<size_t>(block.conv_positions()) * block.out_channels);
    if (!first) inner_words = std::max(inner_words, static_cast<size_t>(block.out_channels) * geometry.row_words());
  }
  for (size_t i = extras == nullptr ? 0 : 1; i < blocks.size(); ++i) {
    share_budget(layout.geometry[i], blocks[i], i == 0, batch_size, num_threads, budget);
    sizes.fit(blocks[i], layout.geometry[i], i == 0 ? nullptr : &blocks[i - 1], i + 1 == blocks.size(), batch_size);
  }
  int input_features = blocks[0].in_features(), classes = blocks.back().out_channels;
  size_t num_scales = blocks.size();
  if (extras != nullptr) {
    input_features = extras->input_features;
    classes = extras->classes;
    num_scales = extras->num_scales;
    largest_map = std::max(largest_map, extras->gradient_stride);
    sizes.y = std::max(sizes.y, extras->y_bytes);
    sizes.grad_t = std::max(sizes.grad_t, extras->grad_t_bytes);
    sizes.bits =
        std::max(sizes.bits, std::min<size_t>(static_cast<size_t>(layout.geometry[0].y_stride), kEmittedAtOnce));
    sizes.staged = std::max(sizes.staged, extras->staged_bytes);
    extras->add_entries(plan);
  }
  layout.gradient_stride = round_up(largest_map, 16);
  layout.input = plan.add("input", "input", "uint8", {batch_size, input_features}, kPersistent, kReadPastInput);
  layout.labels = plan.add("labels", "input", "int32", {batch_size}, kPersistent);
  layout.logits = plan.add("logits", "activations", "float32", {batch_size, classes},
                           kForward | kLoss | (trains ? 0u : uint32_t{kEvaluateAll}));
  if (trains) {
    layout.scales =
        plan.add("scales", "norm", "uint8", {static_cast<int64_t>(num_scales * sizeof(BlockScales))}, kPersistent);
    layout.gradient = plan.add("gradient", "gradients", "int8", {batch_size, extent(layout.gradient_stride)},
                               kLoss | kNormalise | kWeights | kInputs);
    if (inner_words > 0) {
      layout.packed_weights =
          plan.add("packed_weights", "weights", "uint64", {extent(inner_words)}, kNormalise | kWeights | kInputs);
    }
  }
  for (int member = 0; member < num_threads; ++member) {
    layout.scratch.push_back(add_scratch(plan, sizes, trains, member));
  }
  plan.lay_out();

  for (BlockLayout& b : layout.blocks) resolve_all(plan, b);
  for (ScratchLayout& s : layout.scratch) resolve_all(plan, s);
  for (size_t* field :
       {&layout.input, &layout.labels, &layout.logits, &layout.gradient, &layout.packed_weights, &layout.scales}) {
    resolve(plan, *field);
  }
  return layout;
}

}  // namespace bitfleet
