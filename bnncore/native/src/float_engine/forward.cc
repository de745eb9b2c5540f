// Forward: products from runs of signs, pools, batch norm, softmax.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../engine/maps.h"
#include "bnncore/float_engine.h"
#include "bnncore/softmax.h"
#include "reals.h"

namespace bitfleet {

template <class Numerics>
StepResult FloatEngine<Numerics>::step(float step_scale) {
  check_labels(batch_size_);
  beta1_power_ *= static_cast<double>(optimizer_.beta1);
  beta2_power_ *= static_cast<double>(optimizer_.beta2);
  forward(batch_size_, /*training=*/true);
  const StepResult result = softmax(batch_size_, nullptr, /*with_gradient=*/true);
  for (size_t block = block_count(); block-- > 0;) backward(block);
  update(step_scale);
  ++steps_done_;
  ++statistics_steps_;
  return result;
}

template <class Numerics>
StepResult FloatEngine<Numerics>::evaluate(int count, int32_t* predictions) {
  check_labels(count);
  forward(count, /*training=*/false);
  return softmax(count, predictions, /*with_gradient=*/false);
}

template <class Numerics>
void FloatEngine<Numerics>::check_labels(int count) const {
  const int32_t* labels = at<int32_t>(layout_.labels);
  for (int b = 0; b < count; ++b) {
    if (labels[b] < 0 || labels[b] >= classes()) throw std::invalid_argument(bad_label(classes(), labels[b], b));
  }
}

// Signs of channels first .. first + count of a pixel of the map that a block reads; numbers in the first block.
template <class Numerics>
void FloatEngine<Numerics>::pixel_run(size_t block, size_t pixel, int first, int count, float* out) const {
  const size_t channels = static_cast<size_t>(blocks_[block].in_channels);
  if (block == 0) {
    const uint8_t* u = at<uint8_t>(layout_.input) + pixel * channels + first;
    for (int i = 0; i < count; ++i) out[i] = static_cast<float>(2 * int{u[i]} - 255);
  } else if constexpr (Numerics::kPaper) {
    const uint64_t* words = at<uint64_t>(layout_.blocks[block - 1].out) + pixel * words_for(blocks_[block].in_channels);
    for (int i = 0; i < count; ++i) out[i] = get_bit(words, static_cast<size_t>(first + i)) ? -1.0f : 1.0f;
  } else {
    const float* x = at<float>(layout_.blocks[block - 1].out) + pixel * channels + first;
    for (int i = 0; i < count; ++i) out[i] = sign_of(x[i]);
  }
}

// Inputs first .. first + count of what a position of the batch reads; 0 in the padding.
template <class Numerics>
void FloatEngine<Numerics>::patch_run(size_t block, int position, int first, int count, float* out) const {
  const BlockSpec& s = blocks_[block];
  const int sample = position / s.conv_positions(), p = position % s.conv_positions();
  const int top = p / s.conv_width * s.stride - s.pad_height, left = p % s.conv_width * s.stride - s.pad_width;
  // A dense layer on plain numbers is one pixel; a map that is read whole needs no division by its width.
  if (s.taps() == 1 && s.conv_positions() == 1) return pixel_run(block, static_cast<size_t>(sample), first, count, out);
  for (int done = 0; done < count;) {
    const int tap = (first + done) / s.in_channels, channel = (first + done) % s.in_channels;
    const int some = std::min(count - done, s.in_channels - channel);
    const int row = top + tap / s.kernel_width, column = left + tap % s.kernel_width;
    if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) {
      std::memset(out + done, 0, sizeof(float) * static_cast<size_t>(some));
    } else {
      const size_t pixel = (static_cast<size_t>(sample) * s.in_height + row) * s.in_width + column;
      pixel_run(block, pixel, channel, some, out + done);
    }
    done += some;
  }
}

template <class Numerics>
void FloatEngine<Numerics>::weight_run(size_t block, int row, int first, int count, float* out) const {
  const Real* weights = at<Real>(layout_.blocks[block].weights) + size_t(row) * blocks_[block].fan_in() + first;
  for (int i = 0; i < count; ++i) out[i] = sign_of(load(weights[i]));
}

template <class Numerics>
void FloatEngine<Numerics>::forward(int count, bool training) {
  for (size_t block = 0; block < block_count(); ++block) {
    multiply(block, count);
    const bool pools = blocks_[block].pool == Pool::kBeforeNorm;
    if (pools) pool_early(block, count, training);
    const Real* y = slot(pools ? 1 : 0);
    find_statistics(block, count * blocks_[block].norm_positions(), y, training);
    normalise(block, count, y, training);
  }
}

// Products of the whole layer into slot 0: [count][conv positions][out].
template <class Numerics>
void FloatEngine<Numerics>::multiply(size_t block, int count) {
  const BlockSpec& s = blocks_[block];
  const int positions = count * s.conv_positions();
  const float unit = Numerics::kPaper && block == 0 ? 1.0f / 255.0f : 1.0f;
  share((positions + layout_.block_rows - 1) / layout_.block_rows, [&](Range range, int member) {
    const FloatScratch& scratch = layout_.scratch[member];
    float* c = at<float>(scratch.c);
    for (int chunk = range.begin; chunk < range.end; ++chunk) {
      const int first = chunk * layout_.block_rows;
      const int rows = std::min(layout_.block_rows, positions - first);
      for (int column = 0; column < s.out_channels; column += kBlockColumns) {
        const int columns = std::min(kBlockColumns, s.out_channels - column);
        sgemm_block(
            kernels_.sgemm_tile, rows, columns, s.fan_in(), at<float>(scratch.a), at<float>(scratch.b), c,
            [&](int k, int depth, float* panel) {
              pack_rows_of<kPanelRows>(rows, k, depth, panel, [&](int i, int from, int some, float* out) {
                patch_run(block, first + i, from, some, out);
              });
            },
            [&](int k, int depth, float* panel) {
              pack_rows_of<kPanelColumns>(columns, k, depth, panel, [&](int i, int from, int some, float* out) {
                weight_run(block, column + i, from, some, out);
              });
            });
        for (int i = 0; i < rows; ++i) {
          Real* target = slot(0) + size_t(first + i) * s.out_channels + column;
          for (int j = 0; j < columns; ++j) store(target[j], c[size_t(i) * kBlockColumns + j] * unit);
        }
      }
    }
  });
}

// Slot 0 to the pooled map in slot 1; where each largest value came from is kept for the backward pass.
template <class Numerics>
void FloatEngine<Numerics>::pool_early(size_t block, int count, bool training) {
  const BlockSpec& s = blocks_[block];
  const size_t channels = static_cast<size_t>(s.out_channels), words = static_cast<size_t>(words_for(s.out_channels));
  const int conv = s.conv_positions(), pooled = s.pooled_positions();
  share(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      const Real* y = slot(0) + size_t(b) * conv * channels;
      Real* target = slot(1) + size_t(b) * pooled * channels;
      uint64_t* bits = nullptr;
      float* floats = nullptr;
      if constexpr (Numerics::kPaper) {
        bits = at<uint64_t>(layout_.blocks[block].pool) + size_t(b) * conv * words;
        if (training) std::memset(bits, 0, size_t(conv) * words * sizeof(uint64_t));
      } else {
        floats = at<float>(layout_.blocks[block].pool) + size_t(b) * conv * channels;
        if (training) std::memset(floats, 0, size_t(conv) * channels * sizeof(float));
      }
      for (int q = 0; q < pooled; ++q) {
        const size_t corner = static_cast<size_t>(window_corner(s, q));
        for (size_t c = 0; c < channels; ++c) {
          size_t best = corner;
          for (int i = 1; i < s.window(); ++i) {
            const size_t other = corner + static_cast<size_t>(window_offset(s, i));
            if (load(y[other * channels + c]) > load(y[best * channels + c])) best = other;
          }
          target[q * channels + c] = y[best * channels + c];
          if (!training) continue;
          if constexpr (Numerics::kPaper) {
            set_bit(bits + best * words, c, true);
          } else {
            floats[best * channels + c] = 1.0f;
          }
        }
      }
    }
  });
}

// Mean and deviation of every channel, in double, in the order of the positions; their running averages.
template <class Numerics>
void FloatEngine<Numerics>::find_statistics(size_t block, int positions, const Real* y, bool training) {
  const BlockSpec& s = blocks_[block];
  const FloatBlockLayout& b = layout_.blocks[block];
  const size_t channels = static_cast<size_t>(s.out_channels);
  const float unit = Numerics::kPaper && block == 0 ? 255.0f : 1.0f;
  const float keep = 1.0f - 1.0f / static_cast<float>(std::min(statistics_steps_ + 1, kStatisticsWindow));
  float *mean = at<float>(b.mean), *inverse = at<float>(b.inverse), *omega = at<float>(b.omega);
  float *running_mean = at<float>(b.running_mean), *running_dev = at<float>(b.running_mean_abs_dev);
  const float* beta = at<float>(b.beta);
  double* sums = at<double>(layout_.sums);
  share(s.out_channels, [&](Range range, int) {
    const auto sum_up = [&](auto term) {
      for (int c = range.begin; c < range.end; ++c) sums[c] = 0.0;
      for (int n = 0; n < positions; ++n) {
        const Real* row = y + size_t(n) * channels;
        for (int c = range.begin; c < range.end; ++c) sums[c] += term(load(row[c]), c);
      }
    };
    if (!training) {
      for (int c = range.begin; c < range.end; ++c) {
        mean[c] = running_mean[c] / unit;
        inverse[c] = running_dev[c] > 0.0f ? unit / running_dev[c] : 0.0f;
      }
      return;
    }
    sum_up([](float value, int) { return double{value}; });
    for (int c = range.begin; c < range.end; ++c) mean[c] = static_cast<float>(sums[c] / positions);
    sum_up([&](float value, int c) {
      const double d = double{value} - double{mean[c]};
      return Numerics::kPaper ? std::fabs(d) : d * d;
    });
    for (int c = range.begin; c < range.end; ++c) {
      double deviation = sums[c] / positions;
      if (!Numerics::kPaper) deviation = std::sqrt(deviation);
      inverse[c] = deviation > 0.0 ? static_cast<float>(1.0 / deviation) : 0.0f;
      running_mean[c] = keep * running_mean[c] + (1.0f - keep) * (mean[c] * unit);
      running_dev[c] = keep * running_dev[c] + (1.0f - keep) * (static_cast<float>(deviation) * unit);
    }
    if (Numerics::kPaper) {
      sum_up([&](float value, int c) { return double{std::fabs((value - mean[c]) * inverse[c] + beta[c])}; });
      for (int c = range.begin; c < range.end; ++c) omega[c] = static_cast<float>(sums[c] / positions);
    }
  });
}

// x = (y - mean) / deviation + beta, and of it what the next block and the backward pass need.
template <class Numerics>
void FloatEngine<Numerics>::normalise(size_t block, int count, const Real* y, bool training) {
  const BlockSpec& s = blocks_[block];
  const FloatBlockLayout& b = layout_.blocks[block];
  const float *mean = at<float>(b.mean), *inverse = at<float>(b.inverse), *beta = at<float>(b.beta);
  const size_t channels = static_cast<size_t>(s.out_channels), words = static_cast<size_t>(words_for(s.out_channels));
  const bool late = s.pool == Pool::kAfterSign;
  const int norm = s.norm_positions();
  share(count, [&](Range samples, int) {
    for (size_t n = size_t(samples.begin) * norm; n < size_t(samples.end) * norm; ++n) {
      const auto x = [&](size_t c) { return (load(y[n * channels + c]) - mean[c]) * inverse[c] + beta[c]; };
      if (is_last(block)) {
        for (size_t c = 0; c < channels; ++c) at<float>(layout_.logits)[n * channels + c] = x(c);
      } else if constexpr (Numerics::kPaper) {
        uint64_t* signs = at<uint64_t>(late ? b.late : b.out) + n * words;
        std::memset(signs, 0, words * sizeof(uint64_t));
        for (size_t c = 0; c < channels; ++c) set_bit(signs, c, x(c) < 0.0f);
        if (!training) continue;
        uint64_t* mask = at<uint64_t>(b.mask) + n * words;
        std::memset(mask, 0, words * sizeof(uint64_t));
        for (size_t c = 0; c < channels; ++c) set_bit(mask, c, std::fabs(x(c)) <= 1.0f);
      } else {
        float* target = at<float>(late ? b.late : b.out) + n * channels;
        for (size_t c = 0; c < channels; ++c) target[c] = x(c);
      }
    }
    if (!late) return;
    for (int sample = samples.begin; sample < samples.end; ++sample) {
      for (int q = 0; q < s.pooled_positions(); ++q) {
        const size_t n = size_t(sample) * s.pooled_positions() + q;
        const size_t corner = size_t(sample) * norm + static_cast<size_t>(window_corner(s, q));
        const auto positive = [&](size_t c) {
          for (int i = 0; i < s.window(); ++i) {
            if (late_sign(block, corner + static_cast<size_t>(window_offset(s, i)), static_cast<int>(c))) return true;
          }
          return false;
        };
        if constexpr (Numerics::kPaper) {
          uint64_t* signs = at<uint64_t>(b.out) + n * words;
          std::memset(signs, 0, words * sizeof(uint64_t));
          for (size_t c = 0; c < channels; ++c) set_bit(signs, c, !positive(c));
        } else {
          for (size_t c = 0; c < channels; ++c) at<float>(b.out)[n * channels + c] = positive(c) ? 1.0f : -1.0f;
        }
      }
    }
  });
}

// Whether the sign in front of a late pool is +1.
template <class Numerics>
bool FloatEngine<Numerics>::late_sign(size_t block, size_t position, int channel) const {
  const size_t channels = static_cast<size_t>(blocks_[block].out_channels);
  const size_t late = layout_.blocks[block].late;
  if constexpr (Numerics::kPaper) {
    return !get_bit(at<uint64_t>(late) + position * words_for(blocks_[block].out_channels),
                    static_cast<size_t>(channel));
  } else {
    return at<float>(late)[position * channels + channel] >= 0.0f;
  }
}

template <class Numerics>
StepResult FloatEngine<Numerics>::softmax(int count, int32_t* predictions, bool with_gradient) {
  const int32_t* labels = at<int32_t>(layout_.labels);
  // The mean loss; in Paper the sum, which keeps small gradients within float16 and changes no sign.
  const double unit = Numerics::kPaper ? 1.0 : 1.0 / batch_size_;
  int64_t loss = 0, correct = 0;
  for (int b = 0; b < count; ++b) {
    const float* logits = at<float>(layout_.logits) + size_t(b) * classes();
    const SoftmaxRow row = softmax_row(logits, classes(), labels[b]);
    loss += loss_in_units(row.loss);
    correct += row.best == labels[b];
    if (predictions != nullptr) predictions[b] = row.best;
    if (!with_gradient) continue;
    for (int c = 0; c < classes(); ++c) {
      const double p = softmax_probability(row, logits, c);
      store(slot(0)[size_t(b) * classes() + c], static_cast<float>((p - (c == labels[b] ? 1.0 : 0.0)) * unit));
    }
  }
  current_ = 0;
  return {static_cast<double>(loss) / kLossUnit / count, correct};
}

template class FloatEngine<Standard>;
template class FloatEngine<Paper>;

}  // namespace bitfleet
