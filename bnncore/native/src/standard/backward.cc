// Backward of the preset `standard` on a chain: pools, both products, and the order of all.
#include <algorithm>
#include <cstdint>

#include "../engine/maps.h"
#include "bnncore/standard_engine.h"
#include "layers_inl.h"

namespace bitfleet {

void StandardEngine::backward_block(size_t block) {
  float *grad = at<float>(layout_.map_a), *grad_y = at<float>(layout_.map_b);
  switch (blocks_[block].pool) {
    case Pool::kNone:
      block_norm_gradient(block, grad, grad_y);
      break;
    case Pool::kAfterSign:
      route_to_positive(block);
      block_norm_gradient(block, grad_y, grad_y);
      break;
    case Pool::kBeforeNorm:
      block_norm_gradient(block, grad, grad);
      route_by_mask(block);
      break;
  }
  const BlockSpec& spec = blocks_[block];
  const WeightLayout& weights = layout_.blocks[block].weights;
  if (block == 0) {
    find_weight_gradient(spec, weights, grad_y, bytes_as_inputs(spec.in_channels));
  } else {
    find_weight_gradient(spec, weights, grad_y, signs_below(block));
    find_input_gradient(block);
  }
}

// From map_a [out positions] to map_b [product positions]: to the first +1 of a window, else to its first element.
void StandardEngine::route_to_positive(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  const size_t conv = static_cast<size_t>(spec.conv_positions()) * out;
  const int windows = spec.pooled_positions();
  const float *x = at<float>(layout_.blocks[block].norm.x), *grad = at<float>(layout_.map_a);
  float* routed = at<float>(layout_.map_b);
  over_rows(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      std::fill_n(routed + size_t(b) * conv, conv, 0.0f);
      for (int q = 0; q < windows; ++q) {
        const size_t start = size_t(b) * conv + static_cast<size_t>(window_corner(spec, q)) * out;
        const float* source = grad + (size_t(b) * windows + q) * out;
        for (size_t c = 0; c < out; ++c) {
          size_t target = start + c;
          for (int i = 0; i < spec.window(); ++i) {
            const size_t candidate = start + static_cast<size_t>(window_offset(spec, i)) * out + c;
            if (!(x[candidate] < 0.0f)) {
              target = candidate;
              break;
            }
          }
          routed[target] = source[c];
        }
      }
    }
  });
}

// From map_a [pooled positions] to map_b [product positions].
void StandardEngine::route_by_mask(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  const size_t conv = static_cast<size_t>(spec.conv_positions()) * out;
  const int windows = spec.pooled_positions();
  const float *masks = at<float>(layout_.blocks[block].mask), *grad = at<float>(layout_.map_a);
  float* routed = at<float>(layout_.map_b);
  const bool leaves_some = windows * spec.window() < spec.conv_positions();
  over_rows(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      if (leaves_some) std::fill_n(routed + size_t(b) * conv, conv, 0.0f);
      for (int q = 0; q < windows; ++q) {
        const size_t start = size_t(b) * conv + static_cast<size_t>(window_corner(spec, q)) * out;
        const float* source = grad + (size_t(b) * windows + q) * out;
        for (int i = 0; i < spec.window(); ++i) {
          const size_t target = start + static_cast<size_t>(window_offset(spec, i)) * out;
          for (size_t c = 0; c < out; ++c) routed[target + c] = source[c] * masks[target + c];
        }
      }
    }
  });
}

void StandardEngine::block_norm_gradient(size_t block, const float* grad, float* grad_y) {
  norm_gradient(layout_.blocks[block].norm, blocks_[block].out_channels, norm_count(block, batch_size_),
                /*masked=*/block + 1 < block_count(), grad, grad_y);
}

void StandardEngine::find_input_gradient(size_t block) {
  const BlockSpec& spec = blocks_[block];
  float *grad = at<float>(layout_.map_a), *grad_y = at<float>(layout_.map_b);
  if (covers_map(spec)) {
    find_row_gradient(spec, grad_y, weights_of(block), grad);
    return;
  }
  const size_t features = static_cast<size_t>(spec.in_features());
  find_map_gradient(
      spec, grad_y, weights_of(block), [&](int sample, int) { return grad + size_t(sample) * features; },
      [](Range, float*) {});
}

}  // namespace bitfleet
