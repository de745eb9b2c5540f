// Weight gradients, for some output channels at a time, straight into the optimizer state.
#include <algorithm>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "maps.h"

namespace bitfleet {

namespace {

// What add_positions keeps of a row: a sum a position, or one where no tap ever reads padding.
int sums_a_row(const BlockSpec& spec) { return spec.pad_height + spec.pad_width > 0 ? spec.conv_positions() : 1; }

// A row's gradients summed over the positions where each tap reads a pixel, from what add_positions found.
void sum_taps(const BlockSpec& spec, const int32_t* position_sums, int row, int32_t* sums) {
  if (spec.pad_height + spec.pad_width > 0) {
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
    if (geometry(block).column_words > 0 && range.begin < range.end) {  // for all groups of channels
      const size_t words = geometry(block).column_words;
      kernels_.transpose_words(at<uint64_t>(layout_.blocks[block - 1].signs), words, batch_size_,
                               static_cast<int>(words), at<uint64_t>(layout_.scratch[member].columns),
                               static_cast<size_t>(batch_size_));
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
  if (spec.pad_height + spec.pad_width == 0) {
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

// Integer gradients of a run of weights are complete: notes and uses them.
int64_t Engine::finish_weights(size_t block, size_t first, const IntegerGradient& grad, int count, bool measure,
                               const UpdateContext& context, Trace* trace) const {
  const bool wants_sum = !is_float(optimizer_.kind) &&
                         at<BlockScales>(layout_.scales)[block].normaliser_count < optimizer_.normaliser_steps;
  const int64_t abs_sum = wants_sum ? kernels_.channel->integer_abs_sum(grad.sums, grad.factor, grad.offset, count) : 0;
  if (trace != nullptr) {
    std::transform(grad.sums, grad.sums + count,
                   trace->blocks[block].grad_weights.begin() + static_cast<ptrdiff_t>(first),
                   [&](int32_t sum) { return grad.factor * sum + grad.offset; });
  }
  if (!measure) update_run(block, context, first, grad, count);
  return abs_sum;
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
  uint64_t* columns = at<uint64_t>(scratch.columns);
  uint8_t* bits = at<uint8_t>(scratch.weight_bits);
  uint8_t* expanded = at<uint8_t>(scratch.weight_rows);
  std::fill_n(position_sums, size_t(rows) * sums_a_row(spec), 0);

  for (int first = 0; first < positions; first += g.weight_depth) {
    const Range some{first, std::min(first + g.weight_depth, positions)};
    const int depth = some.end - some.begin;
    load_rows(block, channels, some, grad, static_cast<size_t>(g.weight_depth));
    add_positions(block, grad, static_cast<size_t>(g.weight_depth), rows, some, position_sums);
    kernels_.sign_expand_rows(grad, static_cast<size_t>(g.weight_depth), rows, depth, expanded);
    const size_t bits_bytes = sign_bits_bytes(depth);
    for (size_t column = 0; column < g.row_words(); column += kBlocksAtOnce) {
      const int blocks = static_cast<int>(std::min<size_t>(kBlocksAtOnce, g.row_words() - column));
      for (int block_of = 0; block_of < blocks; ++block_of) {
        const uint64_t* source = columns;
        if (g.column_words > 0) {
          source += (column + block_of) * batch_size_;
        } else {
          gather_weight_column(block, column + block_of, some, columns);
        }
        kernels_.sign_expand_bits(source, depth, bits + block_of * bits_bytes);
      }
      kernels_.sign_accumulate(expanded, rows, depth, bits, blocks, sums + column * kColumnBlock, sums_stride,
                               kColumnBlock, /*adds=*/first > 0);
    }
  }

  int32_t* sums_by_tap = at<int32_t>(scratch.tap_sums);
  int64_t abs_sum = 0;
  for (int r = 0; r < rows; ++r) {
    sum_taps(spec, position_sums, r, sums_by_tap);
    const size_t first = size_t(channels.begin + r) * spec.fan_in();
    for (int tap = 0; tap < g.segments; ++tap) {
      const IntegerGradient row{sums + r * sums_stride + tap * g.segment_words * kColumnBlock, -2, sums_by_tap[tap]};
      abs_sum +=
          finish_weights(block, first + size_t(tap) * g.segment_width, row, g.segment_width, measure, context, trace);
    }
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
  int32_t* sums_by_tap = at<int32_t>(scratch.tap_sums);
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
    for (int r = 0; r < rows; ++r) {
      sum_taps(spec, position_sums, r, sums_by_tap);
      int32_t* row = products + size_t(r) * kColumnBlock;
      for (int k = 0; k < count;) {
        const int tap = (column + k) / spec.in_channels;
        const int end = std::min(count, (tap + 1) * spec.in_channels - column);
        const int64_t offset = int64_t{-255} * sums_by_tap[tap];
        IntegerGradient grad{row + k, 2, static_cast<int32_t>(offset)};
        if (g.weight_grad_shift > 0) {  // no other layer's gradient may not fit
          for (int i = k; i < end; ++i) {
            const int64_t sum = fits ? row[i] : sums[size_t(r) * kColumnBlock + i];
            row[i] = static_cast<int32_t>((2 * sum + offset) >> g.weight_grad_shift);
          }
          grad = {row + k, 1, 0};
        } else if (!fits) {
          for (int i = k; i < end; ++i) row[i] = static_cast<int32_t>(sums[size_t(r) * kColumnBlock + i]);
        }
        abs_sum += finish_weights(block, size_t(channels.begin + r) * depth + static_cast<size_t>(column + k), grad,
                                  end - k, measure, context, trace);
        k = end;
      }
    }
  }
  return abs_sum;
}

}  // namespace bitfleet
