// Forward: products, statistics and signs, tile by tile; then softmax cross-entropy.
#include <algorithm>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "bnncore/real_math.h"
#include "bnncore/rounding.h"

namespace bitfleet {

const uint64_t* Engine::pack_rows(size_t block, int first_row, int rows, uint64_t* target) const {
  const int depth = blocks_[block].fan_in();
  const size_t words = static_cast<size_t>(words_for(depth));
  const BlockLayout& layout = layout_.blocks[block];
  const size_t first = static_cast<size_t>(first_row) * static_cast<size_t>(depth);
  switch (optimizer_.kind) {
    case OptimizerKind::kBop:
      std::memcpy(target, at<uint64_t>(layout.packed) + first_row * words, rows * words * sizeof(uint64_t));
      break;
    case OptimizerKind::kAdam:
      for (int r = 0; r < rows; ++r) {
        kernels_.pack_float(at<float>(layout.latent) + first + size_t(r) * depth, depth, target + r * words);
      }
      break;
    default:
      for (int r = 0; r < rows; ++r) {
        kernels_.pack_int8(at<int8_t>(layout.latent) + first + size_t(r) * depth, depth, target + r * words);
      }
  }
  return target;
}

void Engine::multiply(size_t block, const uint64_t* weights, size_t weights_stride, int rows, int count, int member,
                      int32_t* y) const {
  const int depth = blocks_[block].fan_in();
  if (block == 0) {
    kernels_.input_gemm(at<uint8_t>(layout_.input), static_cast<size_t>(depth), count, weights, weights_stride, rows,
                        depth, at<int8_t>(layout_.scratch[member].expanded_weights), y, layout_.y_stride);
  } else {
    kernels_.xnor_gemm(at<uint64_t>(layout_.blocks[block - 1].signs), static_cast<size_t>(words_for(depth)), count,
                       weights, weights_stride, rows, depth, y, layout_.y_stride);
  }
}

void Engine::forward(int count, bool training, Trace* trace) {
  for (size_t block = 0; block < block_count(); ++block) {
    const int groups = words_for(blocks_[block].out_channels);
    pool_.run([&](int member) {
      const Range range = partition(groups, num_threads(), member);
      for (int group = range.begin; group < range.end; ++group) {
        forward_group(block, group, count, training, member, trace);
      }
    });
  }
  if (trace != nullptr) {
    const float* logits = at<float>(layout_.logits);
    trace->logits.assign(logits, logits + size_t(count) * classes());
  }
}

// The 64 channels of one word of the next layer's input.
void Engine::forward_group(size_t block, int group, int count, bool training, int member, Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const BlockLayout& layout = layout_.blocks[block];
  const ScratchLayout& scratch = layout_.scratch[member];
  const bool last = block + 1 == block_count();
  const size_t words = static_cast<size_t>(words_for(spec.fan_in()));
  int32_t* y = at<int32_t>(scratch.y);
  float* mean = at<float>(layout.running_mean);
  float* deviation = at<float>(layout.running_mean_abs_dev);
  const float* beta = at<float>(layout.beta);
  const float keep = 1.0f - 1.0f / static_cast<float>(std::min(statistics_steps_ + 1, kStatisticsWindow));

  const int end = std::min(spec.out_channels, (group + 1) * kWordBits);
  for (int first = group * kWordBits; first < end; first += kTileRows) {
    const int rows = std::min(kTileRows, end - first);
    const uint64_t* weights = pack_rows(block, first, rows, at<uint64_t>(scratch.weights));
    multiply(block, weights, words, rows, count, member, y);
    int32_t sign_from[kTileRows];
    for (int r = 0; r < rows; ++r) {
      const int channel = first + r;
      const int32_t* row = y + r * layout_.y_stride;
      ChannelMoments moments{mean[channel], deviation[channel]};
      if (training) {
        moments = channel_moments(kernels_.channel->statistics(row, count), count);
        mean[channel] = keep * mean[channel] + (1.0f - keep) * static_cast<float>(moments.mean);
        deviation[channel] = keep * deviation[channel] + (1.0f - keep) * static_cast<float>(moments.mean_abs_dev);
      }
      sign_from[r] = channel_thresholds(moments.mean, moments.mean_abs_dev, beta[channel]).sign_from;
      if (last) {
        const double inverse = moments.mean_abs_dev > 0.0 ? 1.0 / moments.mean_abs_dev : 0.0;
        float* logits = at<float>(layout_.logits) + channel;
        for (int b = 0; b < count; ++b) {
          logits[size_t(b) * classes()] = static_cast<float>((row[b] - moments.mean) * inverse + double{beta[channel]});
        }
      }
      if (trace != nullptr) {
        std::copy_n(row, count, trace->blocks[block].y.begin() + size_t(channel) * count);
      }
    }
    if (last) continue;
    uint16_t* bits = at<uint16_t>(scratch.bits);
    kernels_.channel->emit_signs(y, layout_.y_stride, sign_from, rows, count, bits);
    const int shift = first % kWordBits;
    const size_t out_words = static_cast<size_t>(words_for(spec.out_channels));
    uint64_t* signs = at<uint64_t>(layout.signs) + group;
    for (int b = 0; b < count; ++b) {
      const uint64_t before = shift == 0 ? 0 : signs[b * out_words];
      signs[b * out_words] = before | uint64_t{bits[b]} << shift;
    }
  }
}

StepResult Engine::softmax(int count, int32_t* predictions, bool with_gradient) {
  constexpr double kFixedPoint = 4294967296.0;  // losses are summed as integers: no order of addition
  constexpr double kLargestLoss = 1000.0;
  const RandomStream random = stream(block_count() - 1, Purpose::kTopGradient);
  const float* logits = at<float>(layout_.logits);
  const int32_t* labels = at<int32_t>(layout_.labels);
  int8_t* gradient = at<int8_t>(layout_.gradient);
  int64_t loss = 0, correct = 0;
  for (int b = 0; b < count; ++b) {
    const float* row = logits + size_t(b) * classes();
    const int best = static_cast<int>(std::max_element(row, row + classes()) - row);
    double sum = 0.0;
    for (int c = 0; c < classes(); ++c) sum += exp_exact(double{row[c]} - double{row[best]});
    const double sample_loss = log_exact(sum) - (double{row[labels[b]]} - double{row[best]});
    loss += static_cast<int64_t>(std::min(sample_loss, kLargestLoss) * kFixedPoint);
    correct += best == labels[b];
    if (predictions != nullptr) predictions[b] = best;
    if (!with_gradient) continue;
    const double inverse = 1.0 / sum;
    for (int c = 0; c < classes(); ++c) {
      const double p = exp_exact(double{row[c]} - double{row[best]}) * inverse;
      const float grad = static_cast<float>((p - (c == labels[b] ? 1.0 : 0.0)) * 127.0);
      const uint32_t word = random_word(random, static_cast<uint32_t>(b * classes() + c));
      gradient[b * layout_.gradient_stride + c] = static_cast<int8_t>(round_stochastic(grad, word >> 16));
    }
  }
  return {static_cast<double>(loss) / kFixedPoint / count, correct};
}

}  // namespace bitfleet
