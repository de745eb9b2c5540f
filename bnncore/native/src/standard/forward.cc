// Forward of the preset `standard`: products, pools, the l2 batch norm.
#include <algorithm>
#include <cmath>

#include "../engine/maps.h"
#include "../layerwise/products_inl.h"
#include "bnncore/standard_engine.h"

namespace bitfleet {

void StandardEngine::forward(int count, bool training) {
  for (size_t block = 0; block < block_count(); ++block) {
    const bool pools_products = blocks_[block].pool == Pool::kBeforeNorm;
    multiply(block, count, at<float>(pools_products ? layout_.map_a : layout_.blocks[block].x));
    if (pools_products) pool_products(block, count);
    normalise(block, count, training);
    if (blocks_[block].pool == Pool::kAfterSign) pool_signs(block, count);
  }
}

void StandardEngine::multiply(size_t block, int count, float* y) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  const int rows = count * spec.conv_positions();
  const auto inputs = inputs_of(block);
  const auto weights = weights_of(block);
  const auto store = [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
    for (int i = 0; i < some; ++i) std::copy_n(tile + i * stride, columns, y + size_t(first_row + i) * out + first);
  };
  share_product(rows, spec.out_channels, kChannelUnit, [&](Range part_rows, Range columns, int member) {
    const ProductScratch scratch = product_scratch(member);
    Product(kernels_, scratch).forward(spec, part_rows, columns, inputs, weights, store);
  });
}

void StandardEngine::normalise(size_t block, int count, bool training) {
  const BlockSpec& spec = blocks_[block];
  const StandardBlockLayout& layout = layout_.blocks[block];
  const int channels = spec.out_channels, rows = norm_count(block, count);
  float* x = at<float>(layout.x);
  float *mean = at<float>(layout.mean), *deviation = at<float>(layout.deviation);
  float *running_mean = at<float>(layout.running_mean), *running_mean_abs_dev = at<float>(layout.running_mean_abs_dev);
  float* inverse = at<float>(layout_.terms);
  const float keep = kept_share();
  over_channels(channels, [&](int first, int some) {
    if (training) {
      double *sums = at<double>(layout_.sums) + first, *squares = sums + channels;
      std::fill_n(sums, some, 0.0);
      std::fill_n(squares, some, 0.0);
      const size_t stride = static_cast<size_t>(channels);
      kernels_.add_rows(x + first, stride, rows, some, sums);
      for (int c = 0; c < some; ++c) sums[c] /= rows;
      kernels_.add_squares(x + first, stride, rows, some, sums, squares);
      for (int c = 0; c < some; ++c) {
        mean[first + c] = static_cast<float>(sums[c]);
        deviation[first + c] = static_cast<float>(std::sqrt(squares[c] / rows));
      }
    }
    for (int c = first; c < first + some; ++c) {
      if (training) {
        running_mean[c] = keep * running_mean[c] + (1.0f - keep) * mean[c];
        running_mean_abs_dev[c] = keep * running_mean_abs_dev[c] + (1.0f - keep) * deviation[c];
      }
      const float psi = training ? deviation[c] : running_mean_abs_dev[c];
      inverse[c] = psi > 0.0f ? 1.0f / psi : 0.0f;
    }
  });
  const float* centre = training ? mean : running_mean;
  over_rows(rows, [&](Range part, int) {
    float* from = x + size_t(part.begin) * size_t(channels);
    kernels_.normalise(from, part.end - part.begin, channels, centre, inverse, at<float>(layout.beta), from);
  });
}

// The largest product of every window, and a mask that tells the first of equal ones.
void StandardEngine::pool_products(size_t block, int count) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  const size_t conv = static_cast<size_t>(spec.conv_positions()) * out;
  const int windows = spec.pooled_positions();
  const float* products = at<float>(layout_.map_a);
  float *pooled = at<float>(layout_.blocks[block].x), *masks = at<float>(layout_.blocks[block].mask);
  over_rows(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      float* mask = masks + size_t(b) * conv;
      std::fill_n(mask, conv, 0.0f);
      for (int q = 0; q < windows; ++q) {
        const size_t start = static_cast<size_t>(window_corner(spec, q)) * out;
        const float* y = products + size_t(b) * conv + start;
        float* target = pooled + (size_t(b) * windows + q) * out;
        std::copy_n(y, out, target);
        for (int i = 1; i < spec.window(); ++i) {
          const float* other = y + static_cast<size_t>(window_offset(spec, i)) * out;
          for (size_t c = 0; c < out; ++c) target[c] = other[c] > target[c] ? other[c] : target[c];
        }
        mark_first_largest(spec, y, target, mask + start);
      }
    }
  });
}

void StandardEngine::mark_first_largest(const BlockSpec& spec, const float* y, const float* largest, float* mask) {
  const size_t out = static_cast<size_t>(spec.out_channels);
  // From the last element to the first: an earlier one takes the mark over from all later ones.
  for (int i = spec.window() - 1; i >= 0; --i) {
    const size_t offset = static_cast<size_t>(window_offset(spec, i)) * out;
    for (size_t c = 0; c < out; ++c) mask[offset + c] = y[offset + c] == largest[c] ? 1.0f : 0.0f;
    for (int later = i + 1; later < spec.window(); ++later) {
      float* other = mask + static_cast<size_t>(window_offset(spec, later)) * out;
      for (size_t c = 0; c < out; ++c) other[c] = mask[offset + c] > 0.0f ? 0.0f : other[c];
    }
  }
}

// The largest sign of every window.
void StandardEngine::pool_signs(size_t block, int count) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  const int windows = spec.pooled_positions();
  const float* x = at<float>(layout_.blocks[block].x);
  float* pooled = at<float>(layout_.blocks[block].pooled);
  over_rows(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      const float* map = x + size_t(b) * spec.conv_positions() * out;
      for (int q = 0; q < windows; ++q) {
        const float* corner = map + static_cast<size_t>(window_corner(spec, q)) * out;
        float* target = pooled + (size_t(b) * windows + q) * out;
        kernels_.signs(corner, spec.out_channels, target);
        for (int i = 1; i < spec.window(); ++i) {
          const float* other = corner + static_cast<size_t>(window_offset(spec, i)) * out;
          for (size_t c = 0; c < out; ++c) target[c] = other[c] < 0.0f ? target[c] : 1.0f;
        }
      }
    }
  });
}

}  // namespace bitfleet
