// The products of StandardLayers over threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../layerwise/products_inl.h"
#include "bnncore/standard_layers.h"

namespace bitfleet {

// Stores tiles of a product in rows of `width` numbers.
inline auto store_rows(float* target, size_t width) {
  return [target, width](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
    for (int i = 0; i < some; ++i) {
      std::copy_n(tile + size_t(i) * stride, columns, target + size_t(first_row + i) * width + first);
    }
  };
}

template <typename Inputs, typename Weights>
void StandardLayers::multiply(const BlockSpec& spec, int count, Inputs inputs, Weights weights, float* y) {
  const auto store = store_rows(y, static_cast<size_t>(spec.out_channels));
  share_product(count * spec.conv_positions(), spec.out_channels, kChannelUnit,
                [&](Range rows, Range columns, int member) {
                  const ProductScratch scratch = product_scratch(member);
                  Product(kernels_, scratch).forward(spec, rows, columns, inputs, weights, store);
                });
}

template <typename Inputs>
void StandardLayers::find_weight_gradient(const BlockSpec& spec, const WeightLayout& layout, const float* grad_y,
                                          Inputs inputs) {
  const auto store = store_rows(at<float>(layout.gradient), static_cast<size_t>(spec.fan_in()));
  const auto gradients = gradients_from(grad_y, spec);
  share_product(spec.out_channels, spec.fan_in(), kChannelUnit, [&](Range outputs, Range columns, int member) {
    const ProductScratch scratch = product_scratch(member);
    Product(kernels_, scratch)
        .weight_gradient(spec, outputs, columns, batch_size_ * spec.conv_positions(), inputs, gradients, store);
  });
}

template <typename Weights>
void StandardLayers::find_row_gradient(const BlockSpec& spec, const float* grad_y, Weights weights, float* grad) {
  const auto store = store_rows(grad, static_cast<size_t>(spec.in_features()));
  const auto gradients = gradients_from(grad_y, spec);
  share_product(batch_size_, spec.fan_in(), kChannelUnit, [&](Range rows, Range columns, int member) {
    const ProductScratch scratch = product_scratch(member);
    Product(kernels_, scratch).input_gradient(spec, rows, columns, weights, gradients, store);
  });
}

template <typename Weights, typename Place, typename Use>
void StandardLayers::find_map_gradient(const BlockSpec& spec, const float* grad_y, Weights weights, Place place,
                                       Use use) {
  const int step = samples_at_once(spec, SIZE_MAX), conv = spec.conv_positions();
  const size_t features = static_cast<size_t>(spec.in_features());
  const auto gradients = gradients_from(grad_y, spec);
  over_units(batch_size_, step, [&](Range samples, int member) {
    const ProductScratch scratch = product_scratch(member);
    for (int b = samples.begin; b < samples.end; b += step) {
      const int end = std::min(b + step, samples.end);
      float* maps = place(b, member);
      std::fill_n(maps, size_t(end - b) * features, 0.0f);
      Product(kernels_, scratch)
          .input_gradient(spec, {b * conv, end * conv}, {0, spec.fan_in()}, weights, gradients,
                          [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
                            add_patches(spec, b, first_row, some, first, columns, tile, stride, maps);
                          });
      use(Range{b, end}, maps);
    }
  });
}

}  // namespace bitfleet
