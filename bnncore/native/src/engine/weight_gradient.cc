// Weight gradients, for some output channels at a time, straight into the optimizer state.
#include <algorithm>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "maps.h"

namespace bitfleet {

namespace {

bool pads(const BlockSpec& spec) { return spec.pad_height + spec.pad_width > 0; }

// What add_positions keeps of a row: a sum a position, or one where no tap ever reads padding.
int sums_a_row(const BlockSpec& spec) { return pads(spec) ? spec.conv_positions() : 1; }

// A row's gradients summed over the positions where each tap reads a pixel, from what add_positions found.
void sum_taps(const BlockSpec& spec, const int32_t* position_sums, int row, int32_t* sums) {
  if (pads(spec)) {
    tap_sums(spec, position_sums + row * spec.conv_positions(), sums);
  } else {
    std::fill_n(sums, spec.taps(), position_sums[row]);
  }
}

}  // namespace

int64_t Engine::run_weights(size_t block, bool measure, float step_scale, Trace* trace) {
  const UpdateContext context = update_context(block, step_scale);
  const int rows = geometry(block).weight_rows, channels = blocks_[block].out_channels;
  pool_.run([&](int member) {
    TileResult total{};
    const Range range = partition((channels + rows - 1) / rows, num_threads(), member);
    if (block > 0 && expands_columns_once(block) && range.begin < range.end) {
      const Range all{0, batch_size_ * blocks_[block].conv_positions()};
      expand_columns(block, {0, static_cast<int>(geometry(block).row_words())}, all, member);
    }
    for (int group = range.begin; group < range.end; ++group) {
      const Range some{group * rows, std::min((group + 1) * rows, channels)};
      total.abs_sum += block == 0 ? input_weights_of(block, some, measure, context, member, trace)
                                  : weights_of(block, some, measure, context, member, trace);
    }
    results_[member] = total;
  });
  return sum_of_members().abs_sum;
}

// The gradients of some channels at some positions of the batch, channel by channel: int8 [channels][stride].
void Engine::load_rows(size_t block, Range channels, Range positions, int8_t* rows, size_t stride) const {
  const BlockSpec& spec = blocks_[block];
  const int conv = spec.conv_positions(), count = channels.end - channels.begin;
  const int8_t* slot = at<int8_t>(layout_.gradient) + channels.begin;
  if (conv == 1) {
    kernels_.transpose_bytes(slot + positions.begin * layout_.gradient_stride, layout_.gradient_stride,
                             positions.end - positions.begin, count, rows, stride);
    return;
  }
  for (int p = positions.begin; p < positions.end;) {
    const int sample = p / conv, end = std::min(positions.end, (sample + 1) * conv);
    kernels_.transpose_bytes(slot + sample * layout_.gradient_stride + size_t(p % conv) * spec.out_channels,
                             static_cast<size_t>(spec.out_channels), end - p, count, rows + (p - positions.begin),
                             stride);
    p = end;
  }
}

// Adds the gradients of each row at each position of a map; or all of a row, where no tap ever reads padding.
void Engine::add_positions(size_t block, const int8_t* rows, size_t stride, int row_count, Range positions,
                           int32_t* sums) const {
  const BlockSpec& spec = blocks_[block];
  const int count = positions.end - positions.begin;
  if (!pads(spec)) {
    int32_t some[kWeightRows];
    kernels_.channel->byte_sums(rows, stride, row_count, count, some);
    for (int r = 0; r < row_count; ++r) sums[r] += some[r];
    return;
  }
  const int conv = spec.conv_positions();
  for (int r = 0; r < row_count; ++r) {
    const int8_t* source = rows + r * stride;
    for (int p = positions.begin; p < positions.end;) {
      const int first = p % conv, some = std::min(positions.end - p, conv - first);
      int32_t* __restrict target = sums + r * conv + first;
      for (int i = 0; i < some; ++i) target[i] += source[i];
      source += some;
      p += some;
    }
  }
}

// `count` weights of each of some rows, from this column on.
WeightRuns Engine::runs_down(size_t block, int row, int rows, size_t column, int count) const {
  const size_t fan_in = static_cast<size_t>(blocks_[block].fan_in()), first = static_cast<size_t>(row);
  return {
      rows, count, first * fan_in + column, fan_in, padded_index(first, fan_in, column), padded_index(1, fan_in, 0)};
}

// `count` weights each of some segments of one row, which lie side by side.
WeightRuns Engine::runs_along(size_t block, int row, int segments, size_t column, int count) const {
  WeightRuns runs = runs_down(block, row, segments, column, count);
  runs.stride = static_cast<size_t>(count);
  runs.index_stride = static_cast<uint32_t>(count);
  return runs;
}

// Integer gradients of some runs of weights are complete: notes and uses them.
int64_t Engine::finish_weights(size_t block, const WeightRuns& runs, const IntegerGradients& grads, bool measure,
                               const UpdateContext& context, Trace* trace) const {
  int64_t abs_sum = 0;
  if (!is_float(optimizer_.kind) &&
      at<BlockScales>(layout_.scales)[block].normaliser_count < optimizer_.normaliser_steps) {
    for (int r = 0; r < runs.runs; ++r) {
      const IntegerGradient grad = grads.run(r);
      abs_sum += kernels_.channel->integer_abs_sum(grad.sums, grad.factor, grad.offset, runs.count);
    }
  }
  for (int r = 0; trace != nullptr && r < runs.runs; ++r) {
    const IntegerGradient grad = grads.run(r);
    std::transform(grad.sums, grad.sums + runs.count,
                   trace->blocks[block].grad_weights.begin() + static_cast<ptrdiff_t>(runs.begin(r)),
                   [&](int32_t sum) { return grad.factor * sum + grad.offset; });
  }
  if (!measure) update_weights(block, context, runs, grads);
  return abs_sum;
}

// All columns' bits fit where some of them are expanded otherwise, and serve all groups of channels.
bool Engine::expands_columns_once(size_t block) const {
  const BlockGeometry& g = geometry(block);
  return batch_size_ * blocks_[block].conv_positions() <= g.weight_depth &&
         g.row_words() * kernels_.sign_bits_bytes(g.weight_depth) <= g.weight_bits_bytes();
}

// Expands what some positions read in some columns, the words of all taps.
void Engine::expand_columns(size_t block, Range columns, Range positions, int member) const {
  const int depth = positions.end - positions.begin;
  uint64_t* words = at<uint64_t>(layout_.scratch[member].columns);
  uint8_t* bits = at<uint8_t>(layout_.scratch[member].weight_bits);
  for (int column = columns.begin; column < columns.end; ++column, bits += kernels_.sign_bits_bytes(depth)) {
    gather_weight_column(block, static_cast<size_t>(column), positions, words);
    kernels_.sign_expand_bits(words, depth, bits);
  }
}

// One word of what some positions read: `column` counts the words of all taps.
void Engine::gather_weight_column(size_t block, size_t column, Range positions, uint64_t* columns) const {
  const BlockGeometry& g = geometry(block);
  const uint64_t* maps = at<uint64_t>(layout_.blocks[block - 1].signs);
  const int count = positions.end - positions.begin;
  if (g.whole_map) {  // one position a sample, and each tap a pixel of its map
    const uint64_t* source = maps + size_t(positions.begin) * g.row_words() + column;
    for (int j = 0; j < count; ++j) columns[j] = source[j * g.row_words()];
    return;
  }
  gather_column(blocks_[block], maps, g.segment_words, static_cast<int>(column / g.segment_words),
                column % g.segment_words, positions.begin, count, columns);
}

int64_t Engine::weights_of(size_t block, Range channels, bool measure, const UpdateContext& context, int member,
                           Trace* trace) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int rows = channels.end - channels.begin, positions = batch_size_ * spec.conv_positions();
  const size_t sums_stride = g.row_words() * kColumnBlock;
  int8_t* grad = at<int8_t>(scratch.grad_rows);
  int32_t* position_sums = at<int32_t>(scratch.position_sums);
  int32_t* sums = at<int32_t>(scratch.weight_sums);
  const uint8_t* bits = at<uint8_t>(scratch.weight_bits);
  uint8_t* expanded = at<uint8_t>(scratch.weight_rows);
  const int columns = static_cast<int>(g.row_words());
  const bool expands_once = expands_columns_once(block);
  const int columns_at_once = expands_once ? columns : kBlocksAtOnce;
  std::fill_n(position_sums, size_t(rows) * sums_a_row(spec), 0);

  for (int first = 0; first < positions; first += g.weight_depth) {
    const Range some{first, std::min(first + g.weight_depth, positions)};
    const int depth = some.end - some.begin;
    load_rows(block, channels, some, grad, static_cast<size_t>(g.weight_depth));
    add_positions(block, grad, static_cast<size_t>(g.weight_depth), rows, some, position_sums);
    kernels_.sign_expand_rows(grad, static_cast<size_t>(g.weight_depth), rows, depth, expanded);
    for (int column = 0; column < columns; column += columns_at_once) {
      const int end = std::min(column + columns_at_once, columns);
      if (!expands_once) expand_columns(block, {column, end}, some, member);
      kernels_.sign_accumulate(expanded, rows, depth, bits, end - column, sums + column * kColumnBlock, sums_stride,
                               kColumnBlock, /*adds=*/first > 0);
    }
  }

  if (g.segments == 1 && !pads(spec)) {
    return finish_weights(block, runs_down(block, channels.begin, rows, 0, g.segment_width),
                          {sums, sums_stride, -2, position_sums}, measure, context, trace);
  }
  int32_t* sums_by_tap = at<int32_t>(scratch.tap_sums);
  int64_t abs_sum = 0;
  for (int r = 0; r < rows; ++r) {
    sum_taps(spec, position_sums, r, sums_by_tap);
    abs_sum += finish_weights(block, runs_along(block, channels.begin + r, g.segments, 0, g.segment_width),
                              {sums + r * sums_stride, g.segment_words * kColumnBlock, -2, sums_by_tap}, measure,
                              context, trace);
  }
  return abs_sum;
}

// The first block, whose inputs are bytes: sum of grad x (2 u - 255), 64 columns at a time.
int64_t Engine::input_weights_of(size_t block, Range channels, bool measure, const UpdateContext& context, int member,
                                 Trace* trace) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int rows = channels.end - channels.begin, conv = spec.conv_positions(), positions = batch_size_ * conv;
  const size_t depth = static_cast<size_t>(spec.fan_in()), map_bytes = static_cast<size_t>(spec.in_features());
  const uint8_t* input = at<uint8_t>(layout_.input);
  int8_t* grad = at<int8_t>(scratch.grad_rows);
  int32_t* position_sums = at<int32_t>(scratch.position_sums);
  int64_t* sums = at<int64_t>(scratch.weight_sums);  // where 32 bits do not do
  int32_t* products = at<int32_t>(scratch.weight_rows);
  std::fill_n(position_sums, size_t(rows) * sums_a_row(spec), 0);
  int64_t abs_sum = 0;
  const bool fits = positions <= kInputGradRun;  // in 32 bits
  for (int column = 0; column < spec.fan_in(); column += kColumnBlock) {
    if (!fits) std::fill_n(sums, size_t(rows) * kColumnBlock, int64_t{0});
    std::fill_n(products, size_t(rows) * kColumnBlock, 0);
    int pending = 0;
    const auto flush = [&] {
      for (int i = 0; i < rows * kColumnBlock; ++i) sums[i] += products[i];
      std::fill_n(products, size_t(rows) * kColumnBlock, 0);
      pending = 0;
    };
    for (int first = 0; first < positions; first += g.weight_depth) {
      const Range some{first, std::min(first + g.weight_depth, positions)};
      if (column == 0 || positions > g.weight_depth) {
        load_rows(block, channels, some, grad, static_cast<size_t>(g.weight_depth));
      }
      if (column == 0) add_positions(block, grad, static_cast<size_t>(g.weight_depth), rows, some, position_sums);
      for (int p = some.begin; p < some.end;) {
        int count = std::min(kInputGradDepth, some.end - p);
        const uint8_t* u = input + size_t(p) * map_bytes + column;
        if (!g.whole_map) {
          uint8_t* patches = at<uint8_t>(scratch.input_patches);
          count = std::min(count, conv - p % conv);
          gather_patches(spec, input + size_t(p / conv) * map_bytes, static_cast<size_t>(spec.in_channels), p % conv,
                         count, patches);
          u = patches + column;
        }
        kernels_.input_grad(grad + (p - some.begin), static_cast<size_t>(g.weight_depth), rows, count, u,
                            g.whole_map ? map_bytes : depth, at<uint8_t>(scratch.weight_bits), products);
        p += count;
        pending += count;
        if (!fits && pending > kInputGradRun - kInputGradDepth) flush();
      }
    }
    if (!fits) flush();
    const int count = std::min(kColumnBlock, spec.fan_in() - column);
    if (!pads(spec) && fits && g.weight_grad_shift == 0) {
      int32_t offsets[kInputWeightRows];
      for (int r = 0; r < rows; ++r) offsets[r] = -255 * position_sums[r];
      abs_sum += finish_weights(block, runs_down(block, channels.begin, rows, static_cast<size_t>(column), count),
                                {products, kColumnBlock, 2, offsets}, measure, context, trace);
      continue;
    }
    int32_t* sums_by_tap = at<int32_t>(scratch.tap_sums);
    for (int r = 0; r < rows; ++r) {
      sum_taps(spec, position_sums, r, sums_by_tap);
      int32_t* row = products + size_t(r) * kColumnBlock;
      for (int k = 0; k < count;) {
        const int tap = (column + k) / spec.in_channels;
        const int end = std::min(count, (tap + 1) * spec.in_channels - column);
        const int64_t offset = int64_t{-255} * sums_by_tap[tap];
        const int32_t added = g.weight_grad_shift > 0 ? 0 : static_cast<int32_t>(offset);
        if (g.weight_grad_shift > 0) {  // no other layer's gradient may not fit
          for (int i = k; i < end; ++i) {
            const int64_t sum = fits ? row[i] : sums[size_t(r) * kColumnBlock + i];
            row[i] = static_cast<int32_t>((2 * sum + offset) >> g.weight_grad_shift);
          }
        } else if (!fits) {
          for (int i = k; i < end; ++i) row[i] = static_cast<int32_t>(sums[size_t(r) * kColumnBlock + i]);
        }
        abs_sum +=
            finish_weights(block, runs_down(block, channels.begin + r, 1, static_cast<size_t>(column + k), end - k),
                           {row + k, 0, g.weight_grad_shift > 0 ? 1 : 2, &added}, measure, context, trace);
        k = end;
      }
    }
  }
  return abs_sum;
}

}  // namespace bitfleet
