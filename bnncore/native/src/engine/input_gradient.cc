// The gradient for the layer below replaces that of the products, sample by sample, in the same slot.
#include <algorithm>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "maps.h"

namespace bitfleet {

Engine::TileResult Engine::run_inputs(size_t block, bool measure, Trace* trace) {
  pool_.run([&](int member) {
    const Range range = partition(batch_size_, num_threads(), member);
    TileResult total{};
    if (geometry(block).whole_map) {
      for (int first = range.begin; first < range.end; first += kTileRows) {
        total.add(inputs_of(block, {first, std::min(first + kTileRows, range.end)}, measure, member, trace));
      }
    } else {
      for (int sample = range.begin; sample < range.end; ++sample) {
        total.add(input_map_of(block, sample, measure, member, trace));
      }
    }
    results_[member] = total;
  });
  return sum_of_members();
}

// Expands 32 columns of the packed weights under one tap, for some outputs.
void Engine::expand_weight_columns(size_t block, int tap, int column, Range outputs, int member) const {
  const BlockGeometry& g = geometry(block);
  uint32_t* columns = at<uint32_t>(layout_.scratch[member].columns);
  const int depth = outputs.end - outputs.begin, shift = column % kWordBits;
  const uint64_t* source =
      at<uint64_t>(layout_.packed_weights) + outputs.begin * g.row_words() + tap * g.segment_words + column / kWordBits;
  for (int j = 0; j < depth; ++j) columns[j] = static_cast<uint32_t>(source[j * g.row_words()] >> shift);
  kernels_.sign_expand(columns, depth, at<uint8_t>(layout_.scratch[member].expanded));
}

// Rounds a run of grad_x to 8 bits, or only finds its largest magnitude.
Engine::TileResult Engine::round_inputs(size_t block, const int32_t* values, int columns, uint32_t first, bool measure,
                                        int8_t* target, Trace* trace) const {
  const float scale_y = grad_y_scale(block);
  TileResult result{};
  if (measure) {
    result.max_abs = static_cast<float>(kernels_.channel->integer_max(values, columns)) * scale_y;
    return result;
  }
  const float gain = scale_y / at<BlockScales>(layout_.scales)[block].scale_x;
  const QuantiseResult rounded =
      kernels_.channel->integer_quantise(values, target, columns, gain, stream(block, Purpose::kGradX), first);
  result.max_abs = rounded.max_abs / gain * scale_y;
  result.saturated = rounded.saturated;
  if (trace != nullptr) std::copy_n(values, columns, trace->blocks[block].grad_x.begin() + first);
  return result;
}

// Up to 16 samples of a layer whose kernel covers its map: every input is read once.
Engine::TileResult Engine::inputs_of(size_t block, Range samples, bool measure, int member, Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int outputs = spec.out_channels, inputs = spec.in_features();
  const int rows = samples.end - samples.begin;
  const int8_t* grad = at<int8_t>(layout_.gradient) + samples.begin * layout_.gradient_stride;
  int8_t* staged = at<int8_t>(scratch.staged);
  int32_t* products = at<int32_t>(scratch.products);
  int32_t* sums = at<int32_t>(scratch.input_sums);
  for (int r = 0; r < rows; ++r) {
    sums[r] = 0;
    for (int c = 0; c < outputs; ++c) sums[r] += grad[r * layout_.gradient_stride + c];
  }
  TileResult result{};
  for (int tap = 0; tap < g.segments; ++tap) {
    for (int column = 0; column < g.segment_width; column += kColumnBlock) {
      const int columns = std::min(kColumnBlock, g.segment_width - column);
      std::memset(products, 0, size_t(rows) * kColumnBlock * sizeof(int32_t));
      for (int first = 0; first < outputs; first += kSignGemmDepth) {
        const Range some{first, std::min(first + kSignGemmDepth, outputs)};
        expand_weight_columns(block, tap, column, some, member);
        kernels_.sign_accumulate(grad + first, layout_.gradient_stride, rows, some.end - first,
                                 at<uint8_t>(scratch.expanded), products, kColumnBlock);
      }
      for (int r = 0; r < rows; ++r) {
        int32_t* run = products + r * kColumnBlock;
        for (int k = 0; k < columns; ++k) run[k] = sums[r] - 2 * run[k];
        const int input = tap * g.segment_width + column;
        const uint32_t first =
            static_cast<uint32_t>(samples.begin + r) * static_cast<uint32_t>(inputs) + static_cast<uint32_t>(input);
        result.add(round_inputs(block, run, columns, first, measure, staged + size_t(r) * inputs + input, trace));
      }
    }
  }
  if (!measure) {
    for (int r = 0; r < rows; ++r) store_inputs(block, samples.begin + r, staged + size_t(r) * inputs);
  }
  return result;
}

// One sample of a convolution: for 32 input channels at a time, every tap adds the map of gradients, shifted.
Engine::TileResult Engine::input_map_of(size_t block, int sample, bool measure, int member, Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const ScratchLayout& scratch = layout_.scratch[member];
  const size_t outputs = static_cast<size_t>(spec.out_channels);
  const int pixels = spec.in_positions(), conv = spec.conv_positions(), channels = spec.in_channels;
  const int8_t* grad = at<int8_t>(layout_.gradient) + sample * layout_.gradient_stride;
  int8_t* staged = at<int8_t>(scratch.staged);
  int32_t* products = at<int32_t>(scratch.products);
  int32_t* output_sums = at<int32_t>(scratch.input_sums);
  int32_t* sums = output_sums + conv;  // over every output that reads the pixel
  for (int p = 0; p < conv; ++p) {
    output_sums[p] = 0;
    for (size_t c = 0; c < outputs; ++c) output_sums[p] += grad[p * outputs + c];
  }
  std::fill_n(sums, pixels, 0);
  for (int tap = 0; tap < spec.taps(); ++tap) {
    for (int row = 0; row < spec.conv_height; ++row) {
      const TapSpan span = tap_span(spec, tap, row);
      int32_t* target = sums + span.in_row * spec.in_width + span.in_column;
      for (int i = span.begin; i < span.end; ++i) {
        target[(i - span.begin) * spec.stride] += output_sums[row * spec.conv_width + i];
      }
    }
  }
  TileResult result{};
  for (int column = 0; column < channels; column += kColumnBlock) {
    const int columns = std::min(kColumnBlock, channels - column);
    std::memset(products, 0, size_t(pixels) * kColumnBlock * sizeof(int32_t));
    for (int tap = 0; tap < spec.taps(); ++tap) {
      for (int first = 0; first < spec.out_channels; first += kSignGemmDepth) {
        const Range some{first, std::min(first + kSignGemmDepth, spec.out_channels)};
        expand_weight_columns(block, tap, column, some, member);
        for (int row = 0; row < spec.conv_height; ++row) {
          const TapSpan span = tap_span(spec, tap, row);
          if (span.begin == span.end) continue;
          kernels_.sign_accumulate(grad + size_t(row * spec.conv_width + span.begin) * outputs + first, outputs,
                                   span.end - span.begin, some.end - first, at<uint8_t>(scratch.expanded),
                                   products + size_t(span.in_row * spec.in_width + span.in_column) * kColumnBlock,
                                   static_cast<size_t>(spec.stride) * kColumnBlock);
        }
      }
    }
    for (int p = 0; p < pixels; ++p) {
      int32_t* run = products + size_t(p) * kColumnBlock;
      for (int k = 0; k < columns; ++k) run[k] = sums[p] - 2 * run[k];
      const size_t target = size_t(p) * channels + column;
      const uint32_t first =
          static_cast<uint32_t>(sample) * static_cast<uint32_t>(spec.in_features()) + static_cast<uint32_t>(target);
      result.add(round_inputs(block, run, columns, first, measure, staged + target, trace));
    }
  }
  if (!measure) store_inputs(block, sample, staged);
  return result;
}

// Moves a sample's new gradient [in positions][in channels] to where the block below expects it.
void Engine::store_inputs(size_t block, int sample, const int8_t* staged) {
  const BlockSpec& below = blocks_[block - 1];
  int8_t* map = at<int8_t>(layout_.gradient) + sample * layout_.gradient_stride;
  if (below.pool == Pool::kNone) {
    std::memcpy(map, staged, static_cast<size_t>(blocks_[block].in_features()));
    return;
  }
  const size_t channels = static_cast<size_t>(below.out_channels);
  for (int q = 0; q < below.out_positions(); ++q) {
    std::memcpy(map + size_t(gradient_position(below, q)) * channels, staged + q * channels, channels);
  }
}

}  // namespace bitfleet
