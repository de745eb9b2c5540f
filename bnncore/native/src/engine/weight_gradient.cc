// Weight gradients of a tile of channels, 32 columns at a time, straight into the optimizer state.
#include <algorithm>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "maps.h"

namespace bitfleet {

int64_t Engine::fold_weights(size_t block, int first_row, int rows, Pass pass, float step_scale, int member,
                             Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int conv = spec.conv_positions(), taps = spec.taps();
  const bool wants_sum = !is_float(optimizer_.kind) &&
                         at<BlockScales>(layout_.scales)[block].normaliser_count < optimizer_.normaliser_steps;
  const UpdateContext context = update_context(block, step_scale);
  int32_t* position_sums = at<int32_t>(scratch.position_sums);
  int32_t* sums_by_tap = at<int32_t>(scratch.tap_sums);
  int32_t* products = at<int32_t>(scratch.products);
  std::fill_n(position_sums, size_t(rows) * conv, 0);
  int64_t abs_sum = 0;

  // Where the pool comes before the norm the gradient is spread over the product map some samples at a time, and the
  // sums of all columns wait for the last of them.
  for (int sample = 0; sample < batch_size_; sample += g.slab) {
    const Range samples{sample, std::min(sample + g.slab, batch_size_)};
    const bool first_slab = samples.begin == 0, last_slab = samples.end == batch_size_;
    const int8_t* grad = at<int8_t>(scratch.grad_t) + size_t(samples.begin) * conv;
    size_t grad_stride = static_cast<size_t>(g.y_stride);
    if (spec.pool == Pool::kBeforeNorm) {
      grad = spread_gradient(block, samples, rows, member);
      grad_stride = g.spread_stride;
    }
    for (int r = 0; r < rows; ++r) {
      for (int b = 0; b < samples.end - samples.begin; ++b) {
        for (int p = 0; p < conv; ++p) position_sums[r * conv + p] += grad[r * grad_stride + size_t(b) * conv + p];
      }
      if (last_slab) tap_sums(spec, position_sums + r * conv, sums_by_tap + r * taps);
    }
    uint8_t* waiting = at<uint8_t>(scratch.weight_sums);
    const size_t waiting_bytes = size_t(rows) * kColumnBlock * (block == 0 ? sizeof(int64_t) : sizeof(int32_t));
    for (int segment = 0; segment < g.segments; ++segment) {
      for (int column = 0; column < g.segment_width; column += kColumnBlock) {
        if (first_slab) std::memset(waiting, 0, waiting_bytes);
        const Range positions{samples.begin * conv, samples.end * conv};
        if (block == 0) {
          sum_input_columns(block, grad, grad_stride, positions, rows, column, member,
                            reinterpret_cast<int64_t*>(waiting));
        } else {
          sum_columns(block, grad, grad_stride, positions, rows, segment, column, member,
                      reinterpret_cast<int32_t*>(waiting));
        }
        if (last_slab) {
          const int columns = std::min(kColumnBlock, g.segment_width - column);
          for (int r = 0; r < rows; ++r) {
            const size_t first = static_cast<size_t>(first_row + r) * static_cast<size_t>(spec.fan_in()) +
                                 static_cast<size_t>(segment) * g.segment_width + static_cast<size_t>(column);
            for (int k = 0; k < columns; ++k) {
              if (block == 0) {
                const int64_t sum = reinterpret_cast<int64_t*>(waiting)[r * kColumnBlock + k];
                const int64_t x = 2 * sum - int64_t{255} * sums_by_tap[r * taps + (column + k) / spec.in_channels];
                products[k] = static_cast<int32_t>(x >> g.weight_grad_shift);
              } else {
                const int32_t sum = reinterpret_cast<int32_t*>(waiting)[r * kColumnBlock + k];
                products[k] = sums_by_tap[r * taps + segment] - 2 * sum;
              }
            }
            if (wants_sum) abs_sum += kernels_.channel->integer_abs_sum(products, columns);
            if (trace != nullptr) {
              std::copy_n(products, columns, trace->blocks[block].grad_weights.begin() + static_cast<ptrdiff_t>(first));
            }
            if (pass == Pass::kUpdate) update_run(block, context, first, products, columns);
          }
        }
        if (g.slab < batch_size_) waiting += waiting_bytes;
      }
    }
  }
  return abs_sum;
}

// The gradient of pooled values at the arg-max of their windows, 0 elsewhere: int8 [rows][spread stride].
const int8_t* Engine::spread_gradient(size_t block, Range samples, int rows, int member) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int conv = spec.conv_positions(), pooled = spec.pooled_positions();
  int8_t* spread = at<int8_t>(scratch.spread);
  for (int r = 0; r < rows; ++r) {
    int8_t* target = spread + r * g.spread_stride;
    std::memset(target, 0, g.spread_stride);
    for (int b = samples.begin; b < samples.end; ++b, target += conv) {
      const size_t source = size_t(r) * g.y_stride + size_t(b) * pooled;
      const int8_t* grad = at<int8_t>(scratch.grad_t) + source;
      const uint8_t* choice = at<uint8_t>(scratch.choice) + source * choice_bytes(spec);
      for (int q = 0; q < pooled; ++q) {
        const int element = get_choice(spec, choice, static_cast<size_t>(q));
        target[window_corner(spec, q) + window_offset(spec, element)] = grad[q];
      }
    }
  }
  return spread;
}

// sums[r][k] += sum over `positions` of grad x bit of the input, for 32 columns of one tap.
void Engine::sum_columns(size_t block, const int8_t* grad, size_t grad_stride, Range positions, int rows, int segment,
                         int column, int member, int32_t* sums) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  uint32_t* columns = at<uint32_t>(scratch.columns);
  uint8_t* expanded = at<uint8_t>(scratch.expanded);
  const uint64_t* maps = at<uint64_t>(layout_.blocks[block - 1].signs);
  const int word = column / kWordBits, shift = column % kWordBits;
  for (int first = positions.begin; first < positions.end; first += kSignGemmDepth) {
    const int depth = std::min(kSignGemmDepth, positions.end - first);
    if (g.whole_map) {  // one position a sample, and each tap a pixel of its map
      const uint64_t* source = maps + size_t(first) * g.row_words() + segment * g.segment_words + word;
      for (int j = 0; j < depth; ++j) columns[j] = static_cast<uint32_t>(source[j * g.row_words()] >> shift);
    } else {
      gather_columns(spec, maps, g.segment_words, segment, word, shift, first, depth, columns);
    }
    kernels_.sign_expand(columns, depth, expanded);
    kernels_.sign_accumulate(grad + (first - positions.begin), grad_stride, rows, depth, expanded, sums, kColumnBlock);
  }
}

// sums[r][k] += sum over `positions` of grad x byte of the input, for 32 columns of the first block.
void Engine::sum_input_columns(size_t block, const int8_t* grad, size_t grad_stride, Range positions, int rows,
                               int column, int member, int64_t* sums) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int conv = spec.conv_positions();
  const size_t depth = static_cast<size_t>(spec.fan_in()), map_bytes = static_cast<size_t>(spec.in_features());
  const uint8_t* input = at<uint8_t>(layout_.input);
  int32_t* products = at<int32_t>(scratch.products);
  const auto flush = [&] {
    for (int i = 0; i < rows * kColumnBlock; ++i) sums[i] += products[i];
    std::memset(products, 0, size_t(rows) * kColumnBlock * sizeof(int32_t));
  };
  std::memset(products, 0, size_t(rows) * kColumnBlock * sizeof(int32_t));
  int pending = 0;
  for (int first = positions.begin; first < positions.end;) {
    int some = std::min(kInputGradDepth, positions.end - first);
    const uint8_t* u = input + size_t(first) * map_bytes + column;
    if (!g.whole_map) {
      uint8_t* patches = at<uint8_t>(scratch.patches);
      some = std::min(some, conv - first % conv);
      gather_patches(spec, input + size_t(first / conv) * map_bytes, static_cast<size_t>(spec.in_channels),
                     first % conv, some, patches);
      u = patches + column;
    }
    kernels_.input_grad(grad + (first - positions.begin), grad_stride, rows, some, u, g.whole_map ? map_bytes : depth,
                        at<int16_t>(scratch.expanded), products);
    first += some;
    pending += some;
    if (pending > kInputGradRun - kInputGradDepth) {
      flush();
      pending = 0;
    }
  }
  flush();
}

}  // namespace bitfleet
