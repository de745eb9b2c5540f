// Forward of the preset `standard` on a chain: products, pools, and the order of both.
#include <algorithm>

#include "../engine/maps.h"
#include "bnncore/standard_engine.h"
#include "layers_inl.h"

namespace bitfleet {

void StandardEngine::forward(int count, bool training) {
  for (size_t block = 0; block < block_count(); ++block) {
    const bool pools_products = blocks_[block].pool == Pool::kBeforeNorm;
    multiply_block(block, count, at<float>(pools_products ? layout_.map_a : layout_.blocks[block].norm.x));
    if (pools_products) pool_products(block, count);
    normalise(layout_.blocks[block].norm, blocks_[block].out_channels, norm_count(block, count), training);
    if (blocks_[block].pool == Pool::kAfterSign) pool_signs(block, count);
  }
}

void StandardEngine::multiply_block(size_t block, int count, float* y) {
  const BlockSpec& spec = blocks_[block];
  if (block == 0) {
    multiply(spec, count, bytes_as_inputs(spec.in_channels), weights_of(block), y);
  } else {
    multiply(spec, count, signs_below(block), weights_of(block), y);
  }
}

// The largest product of every window, and a mask that tells the first of equal ones.
void StandardEngine::pool_products(size_t block, int count) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  const size_t conv = static_cast<size_t>(spec.conv_positions()) * out;
  const int windows = spec.pooled_positions();
  const float* products = at<float>(layout_.map_a);
  float *pooled = at<float>(layout_.blocks[block].norm.x), *masks = at<float>(layout_.blocks[block].mask);
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
  const float* x = at<float>(layout_.blocks[block].norm.x);
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
