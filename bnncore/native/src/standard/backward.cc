// Backward of the preset `standard`: pools, the l2 batch norm, both products.
#include <algorithm>
#include <cstdint>

#include "../engine/maps.h"
#include "../layerwise/products_inl.h"
#include "bnncore/standard_engine.h"

namespace bitfleet {

void StandardEngine::backward_block(size_t block) {
  float *grad = at<float>(layout_.map_a), *grad_y = at<float>(layout_.map_b);
  switch (blocks_[block].pool) {
    case Pool::kNone:
      norm_gradient(block, grad, grad_y);
      break;
    case Pool::kAfterSign:
      route_to_positive(block);
      norm_gradient(block, grad_y, grad_y);
      break;
    case Pool::kBeforeNorm:
      norm_gradient(block, grad, grad);
      route_by_mask(block);
      break;
  }
  find_weight_gradient(block);
  if (block > 0) find_input_gradient(block);
}

// From map_a [out positions] to map_b [product positions]: to the first +1 of a window, else to its first element.
void StandardEngine::route_to_positive(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  const size_t conv = static_cast<size_t>(spec.conv_positions()) * out;
  const int windows = spec.pooled_positions();
  const float *x = at<float>(layout_.blocks[block].x), *grad = at<float>(layout_.map_a);
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

void StandardEngine::norm_gradient(size_t block, const float* grad, float* grad_y) {
  const BlockSpec& spec = blocks_[block];
  const StandardBlockLayout& layout = layout_.blocks[block];
  const int channels = spec.out_channels, rows = norm_count(block, batch_size_);
  const bool masked = block + 1 < block_count();
  const float *x = at<float>(layout.x), *beta = at<float>(layout.beta), *deviation = at<float>(layout.deviation);
  float *inverse = at<float>(layout_.terms), *mean_v = inverse + channels, *mean_vx = mean_v + channels;
  float* beta_grad = at<float>(layout.beta_grad);
  over_channels(channels, [&](int first, int some) {
    double *sum_g = at<double>(layout_.sums) + first, *sum_gx = sum_g + channels;
    std::fill_n(sum_g, some, 0.0);
    std::fill_n(sum_gx, some, 0.0);
    kernels_.gradient_sums(grad + first, x + first, static_cast<size_t>(channels), rows, some, beta + first, masked,
                           sum_g, sum_gx);
    for (int i = 0; i < some; ++i) {
      const int c = first + i;
      inverse[c] = deviation[c] > 0.0f ? 1.0f / deviation[c] : 0.0f;
      beta_grad[c] = static_cast<float>(sum_g[i]);
      mean_v[c] = static_cast<float>(sum_g[i] * double{inverse[c]} / rows);
      mean_vx[c] = static_cast<float>(sum_gx[i] * double{inverse[c]} / rows);
    }
  });
  over_rows(rows, [&](Range part, int) {
    const size_t from = size_t(part.begin) * size_t(channels);
    kernels_.gradient(grad + from, x + from, part.end - part.begin, channels, beta, masked, {inverse, mean_v, mean_vx},
                      grad_y + from);
  });
}

void StandardEngine::find_weight_gradient(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t fan_in = static_cast<size_t>(spec.fan_in());
  float* weight_grad = at<float>(layout_.blocks[block].weight_grad);
  const auto store = [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
    for (int i = 0; i < some; ++i) {
      std::copy_n(tile + i * stride, columns, weight_grad + size_t(first_row + i) * fan_in + first);
    }
  };
  const auto inputs = inputs_of(block);
  const auto gradients = gradients_of(block);
  share_product(spec.out_channels, spec.fan_in(), kChannelUnit, [&](Range outputs, Range columns, int member) {
    const ProductScratch scratch = product_scratch(member);
    Product(kernels_, scratch)
        .weight_gradient(spec, outputs, columns, batch_size_ * spec.conv_positions(), inputs, gradients, store);
  });
}

void StandardEngine::find_input_gradient(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t features = static_cast<size_t>(spec.in_features());
  float* grad = at<float>(layout_.map_a);
  const auto weights = weights_of(block);
  const auto gradients = gradients_of(block);
  if (covers_map(spec)) {
    const auto store = [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
      for (int i = 0; i < some; ++i) {
        std::copy_n(tile + i * stride, columns, grad + size_t(first_row + i) * features + first);
      }
    };
    share_product(batch_size_, spec.fan_in(), kChannelUnit, [&](Range rows, Range columns, int member) {
      const ProductScratch scratch = product_scratch(member);
      Product(kernels_, scratch).input_gradient(spec, rows, columns, weights, gradients, store);
    });
    return;
  }
  // A few samples at a time, the same ones whoever computes them: what is added to a pixel keeps its order.
  const int step = samples_at_once(spec, SIZE_MAX);
  over_units(batch_size_, step, [&](Range samples, int member) {
    const ProductScratch scratch = product_scratch(member);
    const int conv = spec.conv_positions();
    for (int b = samples.begin; b < samples.end; b += step) {
      const int end = std::min(b + step, samples.end);
      std::fill_n(grad + size_t(b) * features, size_t(end - b) * features, 0.0f);
      Product(kernels_, scratch)
          .input_gradient(spec, {b * conv, end * conv}, {0, spec.fan_in()}, weights, gradients,
                          [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
                            add_patches(spec, 0, first_row, some, first, columns, tile, stride, grad);
                          });
    }
  });
}

}  // namespace bitfleet
