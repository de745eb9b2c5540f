// Backward: pools, batch norm, and the two products of gradients. The gradient lies in one slot, the other is free.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../engine/maps.h"
#include "bnncore/float_engine.h"
#include "reals.h"

namespace bitfleet {

template <class Numerics>
void FloatEngine<Numerics>::backward(size_t block) {
  const Pool pool = blocks_[block].pool;
  if (pool == Pool::kAfterSign) route_late_pool(block);
  find_gradient_sums(block);
  apply_norm_gradient(block);
  if (pool == Pool::kBeforeNorm) spread_early_pool(block);
  find_weight_gradient(block);
  if (block > 0) find_input_gradient(block);
}

template <class Numerics>
void FloatEngine<Numerics>::grad_run(size_t block, int position, int first, int count, float* out) const {
  load_run(slot(current_) + size_t(position) * blocks_[block].out_channels + first, count, out);
}

// x without beta, at a position of the normalised map.
template <class Numerics>
float FloatEngine<Numerics>::normalised(size_t block, size_t position, int channel) const {
  const FloatBlockLayout& b = layout_.blocks[block];
  const size_t index = position * static_cast<size_t>(blocks_[block].out_channels) + channel;
  const size_t kept = is_last(block) ? layout_.logits : (blocks_[block].pool == Pool::kAfterSign ? b.late : b.out);
  return at<float>(kept)[index] - at<float>(b.beta)[channel];
}

// The straight-through estimator's mask: |x| <= 1. In front of the softmax everything passes.
template <class Numerics>
bool FloatEngine<Numerics>::passes(size_t block, size_t position, int channel) const {
  if (is_last(block)) return true;
  if constexpr (Numerics::kPaper) {
    return get_bit(at<uint64_t>(layout_.blocks[block].mask) + position * words_for(blocks_[block].out_channels),
                   static_cast<size_t>(channel));
  } else {
    return std::fabs(normalised(block, position, channel) + at<float>(layout_.blocks[block].beta)[channel]) <= 1.0f;
  }
}

// The gradient of a pooled sign to the first +1 of its window, or to the window's first element.
template <class Numerics>
void FloatEngine<Numerics>::route_late_pool(size_t block) {
  const BlockSpec& s = blocks_[block];
  const size_t channels = static_cast<size_t>(s.out_channels), conv = static_cast<size_t>(s.conv_positions());
  const Real* from = slot(current_);
  Real* to = slot(1 - current_);
  share(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      std::memset(static_cast<void*>(to + b * conv * channels), 0, conv * channels * sizeof(Real));
      for (int q = 0; q < s.pooled_positions(); ++q) {
        const size_t corner = b * conv + static_cast<size_t>(window_corner(s, q));
        const Real* row = from + (size_t(b) * s.pooled_positions() + q) * channels;
        for (size_t c = 0; c < channels; ++c) {
          size_t winner = corner;
          for (int i = s.window(); i-- > 0;) {
            const size_t position = corner + static_cast<size_t>(window_offset(s, i));
            if (late_sign(block, position, static_cast<int>(c))) winner = position;
          }
          to[winner * channels + c] = row[c];
        }
      }
    }
  });
  current_ = 1 - current_;
}

// Sums over the batch of v and of v h, with v = masked gradient / deviation and h = x (Paper: sgn(x) omega).
template <class Numerics>
void FloatEngine<Numerics>::find_gradient_sums(size_t block) {
  const BlockSpec& s = blocks_[block];
  const FloatBlockLayout& b = layout_.blocks[block];
  const int channels = s.out_channels, positions = batch_size_ * s.norm_positions();
  double *sums = at<double>(layout_.sums), *products = sums + channels;
  const bool late = s.pool == Pool::kAfterSign;
  const size_t words = static_cast<size_t>(words_for(channels));
  share(channels, [&](Range range, int) {
    std::fill(sums + range.begin, sums + range.end, 0.0);
    std::fill(products + range.begin, products + range.end, 0.0);
    for (size_t n = 0; n < static_cast<size_t>(positions); ++n) {
      const Real* row = slot(current_) + n * channels;
      for (int c = range.begin; c < range.end; ++c) {
        const double g = passes(block, n, c) ? double{load(row[c])} : 0.0;
        double h;
        if constexpr (Numerics::kPaper) {
          const bool negative = is_last(block)
                                    ? at<float>(layout_.logits)[n * channels + c] < 0.0f
                                    : get_bit(at<uint64_t>(late ? b.late : b.out) + n * words, static_cast<size_t>(c));
          h = negative ? -1.0 : 1.0;
        } else {
          h = double{normalised(block, n, c)};
        }
        sums[c] += g;
        products[c] += g * h;
      }
    }
    const double unit = Numerics::kPaper ? 1.0 / batch_size_ : 1.0;  // there the loss is a sum
    for (int c = range.begin; c < range.end; ++c) {
      const double inverse = double{at<float>(b.inverse)[c]};
      const double omega = Numerics::kPaper ? double{at<float>(b.omega)[c]} : 1.0;
      at<float>(b.beta_grad)[c] = static_cast<float>(sums[c] * unit);
      at<float>(b.offset)[c] = static_cast<float>(sums[c] * inverse / positions);
      at<float>(b.slope)[c] = static_cast<float>(products[c] * inverse * omega / positions);
    }
  });
}

// dY = v - mean(v) - x mean(v x); Paper: dY = v - mean(v) - sgn(x) mean(v sgn(x) omega).
template <class Numerics>
void FloatEngine<Numerics>::apply_norm_gradient(size_t block) {
  const BlockSpec& s = blocks_[block];
  const FloatBlockLayout& b = layout_.blocks[block];
  const int channels = s.out_channels;
  const float *inverse = at<float>(b.inverse), *offset = at<float>(b.offset), *slope = at<float>(b.slope);
  const bool late = s.pool == Pool::kAfterSign;
  const size_t words = static_cast<size_t>(words_for(channels));
  share(batch_size_ * s.norm_positions(), [&](Range range, int) {
    for (size_t n = static_cast<size_t>(range.begin); n < static_cast<size_t>(range.end); ++n) {
      Real* row = slot(current_) + n * channels;
      for (int c = 0; c < channels; ++c) {
        const float v = passes(block, n, c) ? load(row[c]) * inverse[c] : 0.0f;
        float h;
        if constexpr (Numerics::kPaper) {
          const bool negative = is_last(block)
                                    ? at<float>(layout_.logits)[n * channels + c] < 0.0f
                                    : get_bit(at<uint64_t>(late ? b.late : b.out) + n * words, static_cast<size_t>(c));
          h = negative ? -1.0f : 1.0f;
        } else {
          h = normalised(block, n, c);
        }
        store(row[c], inverse[c] > 0.0f ? v - offset[c] - h * slope[c] : 0.0f);
      }
    }
  });
}

// The gradient of a pooled product to where that came from.
template <class Numerics>
void FloatEngine<Numerics>::spread_early_pool(size_t block) {
  const BlockSpec& s = blocks_[block];
  const size_t channels = static_cast<size_t>(s.out_channels), conv = static_cast<size_t>(s.conv_positions());
  const size_t words = static_cast<size_t>(words_for(s.out_channels));
  const size_t pool = layout_.blocks[block].pool;
  const Real* from = slot(current_);
  Real* to = slot(1 - current_);
  share(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      std::memset(static_cast<void*>(to + b * conv * channels), 0, conv * channels * sizeof(Real));
      for (int q = 0; q < s.pooled_positions(); ++q) {
        const Real* row = from + (size_t(b) * s.pooled_positions() + q) * channels;
        for (int i = 0; i < s.window(); ++i) {
          const size_t n = b * conv + static_cast<size_t>(window_corner(s, q) + window_offset(s, i));
          for (size_t c = 0; c < channels; ++c) {
            bool chosen;
            if constexpr (Numerics::kPaper) {
              chosen = get_bit(at<uint64_t>(pool) + n * words, c);
            } else {
              chosen = at<float>(pool)[n * channels + c] != 0.0f;
            }
            if (chosen) to[n * channels + c] = row[c];
          }
        }
      }
    }
  });
  current_ = 1 - current_;
}

// dW [out][fan-in], or its sign.
template <class Numerics>
void FloatEngine<Numerics>::find_weight_gradient(size_t block) {
  const BlockSpec& s = blocks_[block];
  const int positions = batch_size_ * s.conv_positions(), depth = s.fan_in();
  const int threads = pool_.num_threads();
  const int wanted = ((s.out_channels + threads - 1) / threads + kPanelRows - 1) / kPanelRows * kPanelRows;
  const int most_rows = std::min(layout_.block_rows, wanted);
  share((s.out_channels + most_rows - 1) / most_rows, [&](Range range, int member) {
    const FloatScratch& scratch = layout_.scratch[member];
    float* c = at<float>(scratch.c);
    for (int chunk = range.begin; chunk < range.end; ++chunk) {
      const int first = chunk * most_rows, rows = std::min(most_rows, s.out_channels - first);
      for (int column = 0; column < depth; column += kBlockColumns) {
        const int columns = std::min(kBlockColumns, depth - column);
        sgemm_block(
            kernels_.sgemm_tile, rows, columns, positions, at<float>(scratch.a), at<float>(scratch.b), c,
            [&](int k, int some, float* panel) {
              pack_columns_of<kPanelRows>(rows, k, some, panel, [&](int position, int, int count, float* out) {
                grad_run(block, position, first, count, out);
              });
            },
            [&](int k, int some, float* panel) {
              pack_columns_of<kPanelColumns>(columns, k, some, panel, [&](int position, int, int count, float* out) {
                patch_run(block, position, column, count, out);
              });
            });
        for (int i = 0; i < rows; ++i) {
          const float* row = c + size_t(i) * kBlockColumns;
          if constexpr (Numerics::kPaper) {
            uint64_t* bits = at<uint64_t>(layout_.blocks[block].grad) + size_t(first + i) * words_for(depth);
            for (int j = 0; j < columns; ++j) set_bit(bits, static_cast<size_t>(column + j), row[j] < 0.0f);
          } else {
            std::copy_n(row, columns, at<float>(layout_.blocks[block].grad) + size_t(first + i) * depth + column);
          }
        }
      }
    }
  });
}

// dX = dY W: directly where every input is read once, added up under each tap in a map of floats elsewhere.
template <class Numerics>
void FloatEngine<Numerics>::find_input_gradient(size_t block) {
  const BlockSpec& s = blocks_[block];
  const int conv = s.conv_positions(), depth = s.fan_in();
  const bool whole = conv == 1 && depth == s.in_features();
  Real* target = slot(1 - current_);
  // Rows of one product belong to one sample, unless each sample is one row.
  const int span = whole ? batch_size_ : conv;
  share(whole ? (batch_size_ + layout_.block_rows - 1) / layout_.block_rows : batch_size_,
        [&](Range range, int member) {
          const FloatScratch& scratch = layout_.scratch[member];
          float *c = at<float>(scratch.c), *map = at<float>(scratch.map);
          for (int part = range.begin; part < range.end; ++part) {
            if (!whole) std::fill_n(map, s.in_features(), 0.0f);
            const int begin = whole ? part * layout_.block_rows : 0;
            const int end = whole ? std::min(span, begin + layout_.block_rows) : span;
            for (int first = begin; first < end; first += layout_.block_rows) {
              const int rows = std::min(layout_.block_rows, end - first);
              const int position = whole ? first : part * conv + first;
              for (int column = 0; column < depth; column += kBlockColumns) {
                const int columns = std::min(kBlockColumns, depth - column);
                sgemm_block(
                    kernels_.sgemm_tile, rows, columns, s.out_channels, at<float>(scratch.a), at<float>(scratch.b), c,
                    [&](int k, int some, float* panel) {
                      pack_rows_of<kPanelRows>(rows, k, some, panel, [&](int i, int from, int count, float* out) {
                        grad_run(block, position + i, from, count, out);
                      });
                    },
                    [&](int k, int some, float* panel) {
                      pack_columns_of<kPanelColumns>(columns, k, some, panel, [&](int row, int, int count, float* out) {
                        weight_run(block, row, column, count, out);
                      });
                    });
                for (int i = 0; i < rows; ++i) {
                  const float* product = c + size_t(i) * kBlockColumns;
                  if (whole) {
                    Real* out = target + size_t(first + i) * depth + column;
                    for (int j = 0; j < columns; ++j) store(out[j], product[j]);
                    continue;
                  }
                  const int top = (first + i) / s.conv_width * s.stride - s.pad_height;
                  const int left = (first + i) % s.conv_width * s.stride - s.pad_width;
                  for (int j = 0; j < columns;) {
                    const int tap = (column + j) / s.in_channels, channel = (column + j) % s.in_channels;
                    const int some = std::min(columns - j, s.in_channels - channel);
                    const int row = top + tap / s.kernel_width, col = left + tap % s.kernel_width;
                    if (row >= 0 && row < s.in_height && col >= 0 && col < s.in_width) {
                      float* pixel = map + size_t(row * s.in_width + col) * s.in_channels + channel;
                      for (int k = 0; k < some; ++k) pixel[k] += product[j + k];
                    }
                    j += some;
                  }
                }
              }
            }
            if (whole) continue;
            Real* out = target + size_t(part) * s.in_features();
            for (int k = 0; k < s.in_features(); ++k) store(out[k], map[k]);
          }
        });
  current_ = 1 - current_;
}

template class FloatEngine<Standard>;
template class FloatEngine<Paper>;

}  // namespace bitfleet
