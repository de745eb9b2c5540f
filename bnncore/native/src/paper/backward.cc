// Backward of the preset `paper`: pools, the approximate l1 batch-norm gradient, both products.
#include <algorithm>

#include "../engine/maps.h"
#include "operands_inl.h"

namespace bitfleet {

void PaperEngine::backward_block(size_t block) {
  uint16_t *grad = at<uint16_t>(layout_.map_a), *grad_y = at<uint16_t>(layout_.map_b);
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
  if (block == 0) return;
  if (covers_map(blocks_[block])) {
    find_input_gradient(block);
  } else {
    sum_input_gradient(block);
  }
}

// From map_a [out positions] to map_b [product positions]: to the first +1 of a window, else to its first element.
void PaperEngine::route_to_positive(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels), row_words = words(block);
  const size_t conv = static_cast<size_t>(spec.conv_positions());
  const int windows = spec.pooled_positions();
  const uint64_t* negative = at<uint64_t>(layout_.blocks[block].negative);
  const uint16_t* grad = at<uint16_t>(layout_.map_a);
  uint16_t* routed = at<uint16_t>(layout_.map_b);
  over_rows(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      std::fill_n(routed + size_t(b) * conv * out, conv * out, uint16_t{0});
      for (int q = 0; q < windows; ++q) {
        const size_t corner = size_t(b) * conv + static_cast<size_t>(window_corner(spec, q));
        const uint16_t* source = grad + (size_t(b) * windows + q) * out;
        for (size_t w = 0; w < row_words; ++w) {
          uint64_t left = bits_in_word(spec.out_channels, w);
          const auto route = [&](size_t position, uint64_t bits) {
            for_each_bit(bits, w * kWordBits, [&](size_t c) { routed[position * out + c] = source[c]; });
            left &= ~bits;
          };
          for (int i = 0; i < spec.window(); ++i) {
            const size_t position = corner + static_cast<size_t>(window_offset(spec, i));
            route(position, left & ~negative[position * row_words + w]);
          }
          route(corner, left);
        }
      }
    }
  });
}

// From map_a [pooled positions] to map_b [product positions].
void PaperEngine::route_by_mask(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels), row_words = words(block);
  const size_t conv = static_cast<size_t>(spec.conv_positions());
  const int windows = spec.pooled_positions();
  const uint64_t* arg_max = at<uint64_t>(layout_.blocks[block].arg_max);
  const uint16_t* grad = at<uint16_t>(layout_.map_a);
  uint16_t* routed = at<uint16_t>(layout_.map_b);
  over_rows(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      std::fill_n(routed + size_t(b) * conv * out, conv * out, uint16_t{0});
      for (int q = 0; q < windows; ++q) {
        const size_t corner = size_t(b) * conv + static_cast<size_t>(window_corner(spec, q));
        const uint16_t* source = grad + (size_t(b) * windows + q) * out;
        for (int i = 0; i < spec.window(); ++i) {
          const size_t position = corner + static_cast<size_t>(window_offset(spec, i));
          for (size_t w = 0; w < row_words; ++w) {
            for_each_bit(arg_max[position * row_words + w], w * kWordBits,
                         [&](size_t c) { routed[position * out + c] = source[c]; });
          }
        }
      }
    }
  });
}

void PaperEngine::norm_gradient(size_t block, const uint16_t* grad, uint16_t* grad_y) {
  const BlockSpec& spec = blocks_[block];
  const PaperBlockLayout& layout = layout_.blocks[block];
  const int channels = spec.out_channels, rows = norm_count(block, batch_size_);
  const size_t row_words = words(block);
  const uint64_t *negative = at<uint64_t>(layout.negative), *outside = at<uint64_t>(layout.outside);
  float *inverse = at<float>(layout_.terms), *mean_v = inverse + channels, *mean_vs = mean_v + channels;
  // Bits of `count` rows from channel `first` on, which lie in one word each.
  const auto load = [row_words](const uint64_t* bits, int row, int count, int first, uint64_t* out) {
    const uint64_t* source = bits + size_t(row) * row_words + first / kWordBits;
    for (int i = 0; i < count; ++i) out[i] = source[size_t(i) * row_words] >> (first % kWordBits);
  };
  over_channels(channels, [&](int first, int some) {
    double *sum_g = at<double>(layout_.sums) + first, *sum_gs = sum_g + channels;
    std::fill_n(sum_g, some, 0.0);
    std::fill_n(sum_gs, some, 0.0);
    widen_rows(grad, channels, rows, first, some, [&](int row, int count, const float* values) {
      uint64_t signs[kRowsAtOnce], blocked[kRowsAtOnce];
      load(negative, row, count, first, signs);
      load(outside, row, count, first, blocked);
      kernels_.bit_gradient_sums(values, count, some, signs, blocked, sum_g, sum_gs);
    });
    for (int i = 0; i < some; ++i) {
      const int c = first + i;
      const float psi = at<float>(layout.deviation)[c];
      inverse[c] = psi > 0.0f ? 1.0f / psi : 0.0f;
      at<float>(layout.beta_grad)[c] = static_cast<float>(sum_g[i] / batch_size_);
      mean_v[c] = static_cast<float>(sum_g[i] * double{inverse[c]} / rows);
      mean_vs[c] = static_cast<float>(sum_gs[i] * double{inverse[c]} * double{at<float>(layout.omega)[c]} / rows);
    }
  });
  over_rows(rows, [&](Range part, int) {
    const size_t from = size_t(part.begin) * size_t(channels);
    for (int first = 0; first < channels; first += kChannelGroup) {
      const int some = std::min(kChannelGroup, channels - first);
      const NormGradient norm{inverse + first, mean_v + first, mean_vs + first};
      widen_rows(grad + from, channels, part.end - part.begin, first, some,
                 [&](int row, int count, const float* values) {
                   uint64_t signs[kRowsAtOnce], blocked[kRowsAtOnce];
                   float changed[kRowsAtOnce * kChannelGroup];
                   load(negative, part.begin + row, count, first, signs);
                   load(outside, part.begin + row, count, first, blocked);
                   kernels_.bit_gradient(values, count, some, signs, blocked, norm, changed);
                   for (int i = 0; i < count; ++i) {
                     kernels_.narrow(changed + i * some, some, grad_y + from + size_t(row + i) * channels + first);
                   }
                 });
    }
  });
}

void PaperEngine::find_weight_gradient(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t row_words = static_cast<size_t>(words_for(spec.fan_in()));
  uint64_t* weight_grad = at<uint64_t>(layout_.blocks[block].weight_grad);
  const auto store = [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
    for (int i = 0; i < some; ++i) {
      table_.pack_float(tile + i * stride, columns,
                        weight_grad + size_t(first_row + i) * row_words + first / kWordBits);
    }
  };
  const auto inputs = inputs_of(block);
  const auto gradients = gradients_of(block);
  share_product(spec.out_channels, spec.fan_in(), kWordBits, [&](Range outputs, Range columns, int member) {
    const ProductScratch scratch = product_scratch(member);
    Product(kernels_, scratch)
        .weight_gradient(spec, outputs, columns, batch_size_ * spec.conv_positions(), inputs, gradients, store);
  });
}

// Where every input is read once.
void PaperEngine::find_input_gradient(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t features = static_cast<size_t>(spec.in_features());
  uint16_t* grad = at<uint16_t>(layout_.map_a);
  const auto weights = weights_of(block);
  const auto gradients = gradients_of(block);
  const auto store = [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
    for (int i = 0; i < some; ++i) {
      kernels_.narrow(tile + i * stride, columns, grad + size_t(first_row + i) * features + first);
    }
  };
  share_product(batch_size_, spec.fan_in(), kChannelUnit, [&](Range rows, Range columns, int member) {
    const ProductScratch scratch = product_scratch(member);
    Product(kernels_, scratch).input_gradient(spec, rows, columns, weights, gradients, store);
  });
}

// Elsewhere: added up in float32, a few samples at a time, the same ones whoever computes them.
void PaperEngine::sum_input_gradient(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const size_t features = static_cast<size_t>(spec.in_features());
  uint16_t* grad = at<uint16_t>(layout_.map_a);
  const auto weights = weights_of(block);
  const auto gradients = gradients_of(block);
  const int step = samples_at_once(spec, layout_.map_size), conv = spec.conv_positions();
  over_units(batch_size_, step, [&](Range samples, int member) {
    const ProductScratch scratch = product_scratch(member);
    float* maps = at<float>(layout_.maps[static_cast<size_t>(member)]);
    for (int b = samples.begin; b < samples.end; b += step) {
      const int end = std::min(b + step, samples.end);
      const size_t numbers = size_t(end - b) * features;
      std::fill_n(maps, numbers, 0.0f);
      Product(kernels_, scratch)
          .input_gradient(spec, {b * conv, end * conv}, {0, spec.fan_in()}, weights, gradients,
                          [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
                            add_patches(spec, b, first_row, some, first, columns, tile, stride, maps);
                          });
      kernels_.narrow(maps, static_cast<int>(numbers), grad + size_t(b) * features);
    }
  });
}

}  // namespace bitfleet
