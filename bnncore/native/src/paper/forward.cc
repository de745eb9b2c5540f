// Forward of the preset `paper`: products in float16, pools, the l1 batch norm, bits.
#include <algorithm>
#include <cmath>

#include "../engine/maps.h"
#include "operands_inl.h"

namespace bitfleet {

void PaperEngine::forward(int count, bool training) {
  for (size_t block = 0; block < block_count(); ++block) {
    const bool pools_products = blocks_[block].pool == Pool::kBeforeNorm;
    multiply(block, count);
    if (pools_products) pool_products(block, count);
    normalise(block, count, training, at<uint16_t>(pools_products ? layout_.map_b : layout_.map_a));
    if (blocks_[block].pool == Pool::kAfterSign) pool_signs(block, count);
  }
}

void PaperEngine::multiply(size_t block, int count) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels);
  uint16_t* y = at<uint16_t>(layout_.map_a);
  const auto inputs = inputs_of(block);
  const auto weights = weights_of(block);
  const auto store = [&](int first_row, int some, int first, int columns, const float* tile, size_t stride) {
    for (int i = 0; i < some; ++i) kernels_.narrow(tile + i * stride, columns, y + size_t(first_row + i) * out + first);
  };
  share_product(count * spec.conv_positions(), spec.out_channels, kChannelUnit,
                [&](Range rows, Range columns, int member) {
                  const ProductScratch scratch = product_scratch(member);
                  Product(kernels_, scratch).forward(spec, rows, columns, inputs, weights, store);
                });
}

// The largest product of every window, and a bit that tells the first of equal ones.
void PaperEngine::pool_products(size_t block, int count) {
  const BlockSpec& spec = blocks_[block];
  const size_t out = static_cast<size_t>(spec.out_channels), row_words = words(block);
  const size_t conv = static_cast<size_t>(spec.conv_positions());
  const int windows = spec.pooled_positions();
  const uint16_t* products = at<uint16_t>(layout_.map_a);
  uint16_t* pooled = at<uint16_t>(layout_.map_b);
  uint64_t* arg_max = at<uint64_t>(layout_.blocks[block].arg_max);
  // In this order of integers, numbers in float16 are in theirs.
  const auto key = [](uint16_t half) { return static_cast<int16_t>((half & 0x8000u) != 0 ? half ^ 0x7fffu : half); };
  over_rows(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      std::fill_n(arg_max + size_t(b) * conv * row_words, conv * row_words, uint64_t{0});
      for (int q = 0; q < windows; ++q) {
        const size_t corner = size_t(b) * conv + static_cast<size_t>(window_corner(spec, q));
        uint16_t* target = pooled + (size_t(b) * windows + q) * out;
        for (size_t first = 0; first < out; first += kChannelGroup) {
          const size_t some = std::min<size_t>(kChannelGroup, out - first);
          int16_t best[kChannelGroup];
          int32_t choice[kChannelGroup] = {};
          for (size_t c = 0; c < some; ++c) best[c] = key(products[corner * out + first + c]);
          for (int i = 1; i < spec.window(); ++i) {
            const uint16_t* other = products + (corner + static_cast<size_t>(window_offset(spec, i))) * out + first;
            for (size_t c = 0; c < some; ++c) {
              const int16_t value = key(other[c]);
              choice[c] = value > best[c] ? i : choice[c];
              best[c] = value > best[c] ? value : best[c];
            }
          }
          for (size_t c = 0; c < some; ++c) {
            target[first + c] = static_cast<uint16_t>(best[c] < 0 ? best[c] ^ 0x7fff : best[c]);
            const size_t position = corner + static_cast<size_t>(window_offset(spec, choice[c]));
            arg_max[position * row_words + first / kWordBits] |= uint64_t{1} << c;
          }
        }
      }
    }
  });
}

// The largest sign of every window is -1 only where all are.
void PaperEngine::pool_signs(size_t block, int count) {
  const BlockSpec& spec = blocks_[block];
  const size_t row_words = words(block), conv = static_cast<size_t>(spec.conv_positions());
  const int windows = spec.pooled_positions();
  const uint64_t* negative = at<uint64_t>(layout_.blocks[block].negative);
  uint64_t* pooled = at<uint64_t>(layout_.blocks[block].pooled);
  over_rows(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      for (int q = 0; q < windows; ++q) {
        const size_t corner = size_t(b) * conv + static_cast<size_t>(window_corner(spec, q));
        for (size_t w = 0; w < row_words; ++w) {
          uint64_t all = ~uint64_t{0};
          for (int i = 0; i < spec.window(); ++i) {
            all &= negative[(corner + static_cast<size_t>(window_offset(spec, i))) * row_words + w];
          }
          pooled[(size_t(b) * windows + q) * row_words + w] = all;
        }
      }
    }
  });
}

void PaperEngine::normalise(size_t block, int count, bool training, const uint16_t* y) {
  const BlockSpec& spec = blocks_[block];
  const PaperBlockLayout& layout = layout_.blocks[block];
  const int rows = norm_count(block, count);
  float *mean = at<float>(layout.mean), *deviation = at<float>(layout.deviation), *inverse = at<float>(layout_.terms);
  const float keep = kept_share();
  over_channels(spec.out_channels, [&](int first, int some) {
    if (training) find_statistics(block, rows, first, some, y);
    for (int c = first; c < first + some; ++c) {
      float &running_mean = at<float>(layout.running_mean)[c], &running = at<float>(layout.running_mean_abs_dev)[c];
      if (training) {
        running_mean = keep * running_mean + (1.0f - keep) * (mean[c] * unit(block));
        running = keep * running + (1.0f - keep) * (deviation[c] * unit(block));
      } else {
        mean[c] = running_mean / unit(block);
        deviation[c] = running / unit(block);
      }
      inverse[c] = deviation[c] > 0.0f ? 1.0f / deviation[c] : 0.0f;
    }
    emit(block, rows, first, some, training, y);
  });
}

void PaperEngine::find_statistics(size_t block, int rows, int first, int some, const uint16_t* y) {
  const PaperBlockLayout& layout = layout_.blocks[block];
  const int channels = blocks_[block].out_channels;
  double *sums = at<double>(layout_.sums) + first, *deviations = sums + channels;
  std::fill_n(sums, some, 0.0);
  std::fill_n(deviations, some, 0.0);
  const size_t stride = static_cast<size_t>(some);
  widen_rows(y, channels, rows, first, some,
             [&](int, int count, const float* values) { kernels_.add_rows(values, stride, count, some, sums); });
  for (int c = 0; c < some; ++c) sums[c] /= rows;
  widen_rows(y, channels, rows, first, some, [&](int, int count, const float* values) {
    kernels_.add_deviations(values, stride, count, some, sums, deviations);
  });
  for (int c = 0; c < some; ++c) {
    at<float>(layout.mean)[first + c] = static_cast<float>(sums[c]);
    at<float>(layout.deviation)[first + c] = static_cast<float>(deviations[c] / rows);
  }
}

// X' of some channels: its bits and its mean magnitude, or the logits.
void PaperEngine::emit(size_t block, int rows, int first, int some, bool training, const uint16_t* y) {
  const PaperBlockLayout& layout = layout_.blocks[block];
  const int channels = blocks_[block].out_channels;
  const bool last = block + 1 == block_count();
  const size_t lanes = words(block) * (kWordBits / kChannelUnit);
  uint16_t *negative = at<uint16_t>(layout.negative), *outside = at<uint16_t>(layout.outside);
  const int first_lane = first / kChannelUnit;
  // The last channels of a position clear the rest of its last word.
  const int end_lane = first + some == channels ? static_cast<int>(lanes) : (first + some) / kChannelUnit;
  const float* beta = at<float>(layout.beta) + first;
  double* magnitudes = at<double>(layout_.sums) + first;
  const double zero[kChannelGroup] = {};
  std::fill_n(magnitudes, some, 0.0);
  widen_rows(y, channels, rows, first, some, [&](int row, int count, float* x) {
    kernels_.normalise(x, count, some, at<float>(layout.mean) + first, at<float>(layout_.terms) + first, beta, x);
    if (training) kernels_.add_deviations(x, static_cast<size_t>(some), count, some, zero, magnitudes);
    uint64_t below[kRowsAtOnce], beyond[kRowsAtOnce];
    kernels_.pack_norm(x, count, some, below, beyond);
    for (int i = 0; i < count; ++i) {
      const size_t lane = size_t(row + i) * lanes;
      for (int k = first_lane; k < end_lane; ++k) {
        const int shift = (k - first_lane) * kChannelUnit;
        negative[lane + k] = static_cast<uint16_t>(below[i] >> shift);
        outside[lane + k] = last ? uint16_t{0} : static_cast<uint16_t>(beyond[i] >> shift);
      }
      if (last) std::copy_n(x + i * some, some, at<float>(layout_.common.logits) + size_t(row + i) * channels + first);
    }
  });
  for (int c = 0; c < some; ++c) at<float>(layout.omega)[first + c] = static_cast<float>(magnitudes[c] / rows);
}

}  // namespace bitfleet
