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
      const InputOperands operands = input_operands(block, member);
      if (operands.once && range.begin < range.end) expand_packed_weights(block, operands);
      for (int first = range.begin; first < range.end; first += operands.rows) {
        const Range samples{first, std::min(first + operands.rows, range.end)};
        total.add(inputs_of(block, samples, operands, measure, member, trace));
      }
    } else {
      for (int sample = range.begin; sample < range.end; ++sample) {
        total.add(input_map_of(block, sample, sample > range.begin, measure, member, trace));
      }
    }
    results_[member] = total;
  });
  return sum_of_members();
}

// Expands one word of the packed weights under one tap, for some outputs.
void Engine::expand_weight_column(size_t block, int tap, size_t word, Range outputs, int member, uint8_t* bits) const {
  const BlockGeometry& g = geometry(block);
  uint64_t* columns = at<uint64_t>(layout_.scratch[member].weight_columns);
  const int depth = outputs.end - outputs.begin;
  const uint64_t* source =
      at<uint64_t>(layout_.packed_weights) + outputs.begin * g.row_words() + tap * g.segment_words + word;
  for (int j = 0; j < depth; ++j) columns[j] = source[j * g.row_words()];
  kernels_.sign_expand_bits(columns, depth, bits);
}

// Rounds a run of grad_x, `whole` less twice the sums over bits, to 8 bits, or only finds its largest magnitude.
Engine::TileResult Engine::round_inputs(size_t block, const int32_t* sums, int32_t whole, int columns, uint32_t first,
                                        bool measure, int8_t* target, Trace* trace) const {
  const float scale_y = grad_y_scale(block);
  TileResult result{};
  if (measure) {
    result.max_abs = static_cast<float>(kernels_.channel->integer_max(sums, whole, columns)) * scale_y;
    return result;
  }
  const float gain = scale_y / at<BlockScales>(layout_.scales)[block].scale_x;
  const QuantiseResult rounded =
      kernels_.channel->integer_quantise(sums, whole, target, columns, gain, stream(block, Purpose::kGradX), first);
  result.max_abs = rounded.max_abs / gain * scale_y;
  result.saturated = rounded.saturated;
  if (trace != nullptr) {
    std::transform(sums, sums + columns, trace->blocks[block].grad_x.begin() + first,
                   [whole](int32_t sum) { return whole - 2 * sum; });
  }
  return result;
}

// Where the bits of all weights fit and leave room for some samples, they are expanded once; else, for each group of
// samples, a word of one part of the outputs at a time.
Engine::InputOperands Engine::input_operands(size_t block, int member) const {
  const BlockGeometry& g = geometry(block);
  const int outputs = blocks_[block].out_channels;
  const size_t parts = g.input_parts(outputs);
  const size_t word_bytes = kernels_.sign_bits_bytes(g.input_depth), part_bytes = g.row_words() * word_bytes;
  const size_t room = g.input_operand_bytes(outputs);
  uint8_t* bits = at<uint8_t>(layout_.scratch[member].input_operands);
  if (g.input_words == g.row_words() && parts * part_bytes < room) {
    const size_t all_bits = parts * part_bytes;
    const int fit = static_cast<int>((room - all_bits) / sign_row_bytes(g.input_depth));
    const int samples = fit < g.input_rows ? fit / kRowStep * kRowStep : g.input_rows;
    if (samples > 0) return {true, samples, part_bytes, bits, bits + all_bits};
  }
  return {false, g.input_rows, part_bytes, bits, bits + word_bytes};
}

void Engine::expand_packed_weights(size_t block, const InputOperands& operands) const {
  const BlockGeometry& g = geometry(block);
  const int outputs = blocks_[block].out_channels;
  uint8_t* part_bits = operands.bits;
  for (int first = 0; first < outputs; first += g.input_depth, part_bits += operands.part_bits_bytes) {
    const int depth = std::min(g.input_depth, outputs - first);
    const uint64_t* columns = at<uint64_t>(layout_.packed_weights) + first;
    for (size_t word = 0; word < g.row_words(); ++word, columns += outputs) {
      kernels_.sign_expand_bits(columns, depth, part_bits + word * kernels_.sign_bits_bytes(depth));
    }
  }
}

// Some samples of a layer whose kernel covers its map: every input is read once.
Engine::TileResult Engine::inputs_of(size_t block, Range samples, const InputOperands& operands, bool measure,
                                     int member, Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int outputs = spec.out_channels, inputs = spec.in_features();
  const int rows = samples.end - samples.begin;
  const size_t part_rows_bytes = operands.once ? 0 : size_t(operands.rows) * sign_row_bytes(g.input_depth);
  const int8_t* grad = at<int8_t>(layout_.gradient) + samples.begin * layout_.gradient_stride;
  const bool pools_below = blocks_[block - 1].pool != Pool::kNone;
  int32_t* products = at<int32_t>(scratch.input_products);
  int32_t* sums = at<int32_t>(scratch.input_sums);
  kernels_.channel->byte_sums(grad, layout_.gradient_stride, rows, outputs, sums);
  for (int first = 0, part = 0; first < outputs; first += g.input_depth, ++part) {
    const int depth = std::min(g.input_depth, outputs - first);
    kernels_.sign_expand_rows(grad + first, layout_.gradient_stride, rows, depth,
                              operands.expanded + part * part_rows_bytes);
    if (operands.once) {  // the next part's rows may take the place of these
      kernels_.sign_accumulate(operands.expanded, rows, depth, operands.bits + part * operands.part_bits_bytes,
                               static_cast<int>(g.row_words()), products, g.row_words() * kColumnBlock, kColumnBlock,
                               /*adds=*/part > 0);
    }
  }
  // From here on nothing reads these samples' gradient: where no pool spreads the new one, it may replace it at once.
  int8_t* target =
      pools_below ? at<int8_t>(scratch.staged) : at<int8_t>(layout_.gradient) + samples.begin * layout_.gradient_stride;
  const size_t target_stride = pools_below ? static_cast<size_t>(inputs) : layout_.gradient_stride;
  const size_t run = g.joined() ? g.row_words() : g.segment_words;  // words whose inputs follow each other
  TileResult result{};
  for (size_t first_word = 0; first_word < g.row_words();) {
    const size_t words = std::min(g.input_words, run - first_word % run), stride = words * kColumnBlock;
    for (int first = 0, part = 0; first < outputs && !operands.once; first += g.input_depth, ++part) {
      const int depth = std::min(g.input_depth, outputs - first);
      for (size_t word = 0; word < words; ++word) {
        kernels_.sign_expand_bits(at<uint64_t>(layout_.packed_weights) + (first_word + word) * outputs + first, depth,
                                  operands.bits);
        kernels_.sign_accumulate(operands.expanded + part * part_rows_bytes, rows, depth, operands.bits, 1,
                                 products + word * kColumnBlock, stride, 0, /*adds=*/part > 0);
      }
    }
    const int column = static_cast<int>(first_word % run) * kColumnBlock;
    const int input = static_cast<int>(first_word / run) * g.segment_width + column;
    const int columns = std::min(static_cast<int>(stride), (g.joined() ? inputs : g.segment_width) - column);
    for (int r = 0; r < rows; ++r) {
      const uint32_t first =
          static_cast<uint32_t>(samples.begin + r) * static_cast<uint32_t>(inputs) + static_cast<uint32_t>(input);
      result.add(round_inputs(block, products + r * stride, sums[r], columns, first, measure,
                              target + r * target_stride + input, trace));
    }
    first_word += words;
  }
  if (pools_below && !measure) {
    for (int r = 0; r < rows; ++r) store_inputs(block, samples.begin + r, target + r * target_stride);
  }
  return result;
}

// One sample of a convolution: every tap adds the map of gradients, shifted. `bits_are_ready` says that the sample
// before left the expanded weights where they are needed again.
Engine::TileResult Engine::input_map_of(size_t block, int sample, bool bits_are_ready, bool measure, int member,
                                        Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int outputs = spec.out_channels, pixels = spec.in_positions(), conv = spec.conv_positions();
  const int width = spec.conv_width;
  const int8_t* grad = at<int8_t>(layout_.gradient) + sample * layout_.gradient_stride;
  int8_t* staged = at<int8_t>(scratch.staged);
  int32_t* products = at<int32_t>(scratch.input_products);
  uint8_t* bits = at<uint8_t>(scratch.input_operands);
  uint8_t* expanded = bits + static_cast<size_t>(spec.taps()) * g.input_words * most_sign_bits_bytes(g.input_depth);
  int32_t* output_sums = at<int32_t>(scratch.input_sums);
  int32_t* sums = output_sums + conv;  // over every output that reads the pixel
  kernels_.channel->byte_sums(grad, static_cast<size_t>(outputs), conv, outputs, output_sums);
  std::fill_n(sums, pixels, 0);
  for (int tap = 0; tap < spec.taps(); ++tap) {
    for (int row = 0; row < spec.conv_height; ++row) {
      const TapSpan span = tap_span(spec, tap, row);
      int32_t* target = sums + span.in_row * spec.in_width + span.in_column;
      for (int i = span.begin; i < span.end; ++i)
        target[(i - span.begin) * spec.stride] += output_sums[row * width + i];
    }
  }

  TileResult result{};
  const bool expands_once = g.input_words == g.segment_words && g.input_depth >= outputs;
  for (size_t first_word = 0; first_word < g.segment_words; first_word += g.input_words) {
    const size_t words = std::min(g.input_words, g.segment_words - first_word);
    const size_t stride = words * kColumnBlock;
    std::fill_n(products, pixels * stride, 0);
    for (int output = 0; output < outputs; output += g.input_depth) {
      const Range some{output, std::min(output + g.input_depth, outputs)};
      const int depth = some.end - some.begin;
      const size_t row_bytes = sign_row_bytes(depth), bits_bytes = kernels_.sign_bits_bytes(depth);
      for (int tap = 0; tap < spec.taps() && !(expands_once && bits_are_ready); ++tap) {
        for (size_t word = 0; word < words; ++word) {
          expand_weight_column(block, tap, first_word + word, some, member, bits + (tap * words + word) * bits_bytes);
        }
      }
      for (int first = 0; first < conv; first += g.input_rows) {
        const int last = std::min(first + g.input_rows, conv);
        kernels_.sign_expand_rows(grad + size_t(first) * outputs + output, static_cast<size_t>(outputs), last - first,
                                  depth, expanded);
        for (int row = first / width; row * width < last; ++row) {
          for (int tap = 0; tap < spec.taps(); ++tap) {
            const TapSpan span = tap_span(spec, tap, row);
            const int begin = std::max(span.begin, first - row * width), end = std::min(span.end, last - row * width);
            if (begin >= end) continue;
            const size_t pixel =
                static_cast<size_t>(span.in_row * spec.in_width + span.in_column + (begin - span.begin) * spec.stride);
            kernels_.sign_accumulate(expanded + size_t(row * width + begin - first) * row_bytes, end - begin, depth,
                                     bits + tap * words * bits_bytes, static_cast<int>(words),
                                     products + pixel * stride, spec.stride * stride, kColumnBlock, /*adds=*/true);
          }
        }
      }
    }
    const int channel = static_cast<int>(first_word) * kColumnBlock;
    const int columns = std::min(static_cast<int>(stride), spec.in_channels - channel);
    for (int p = 0; p < pixels; ++p) {
      const size_t target = size_t(p) * spec.in_channels + channel;
      const uint32_t first =
          static_cast<uint32_t>(sample) * static_cast<uint32_t>(spec.in_features()) + static_cast<uint32_t>(target);
      result.add(round_inputs(block, products + p * stride, sums[p], columns, first, measure, staged + target, trace));
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
