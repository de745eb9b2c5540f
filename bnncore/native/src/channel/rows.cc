#include <algorithm>
#include <vector>

#include "bnncore/norm_rows.h"
#include "bnncore/thread_pool.h"

namespace bitfleet {

namespace {

constexpr size_t kBlockRows = 1024;  // sums of 16-bit numbers fit into 32 bits

size_t blocks_of(size_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

// Calls work(block, first row, rows) for every block.
template <typename Work>
void for_blocks(size_t rows, int threads, const Work& work) {
  const int blocks = static_cast<int>(blocks_of(rows));
  ThreadPool pool(std::clamp(threads, 1, std::max(1, blocks)));
  pool.run([&](int member) {
    const Range mine = partition(blocks, pool.num_threads(), member);
    for (size_t i = static_cast<size_t>(mine.begin); i < static_cast<size_t>(mine.end); ++i) {
      work(i, i * kBlockRows, std::min(kBlockRows, rows - i * kBlockRows));
    }
  });
}

// Partial sums by block, added up in order.
template <typename Total, typename Part>
void add_parts(const std::vector<Part>& parts, size_t channels, Total* totals) {
  for (size_t i = 0; i < parts.size(); ++i) totals[i % channels] += static_cast<Total>(parts[i]);
}

void add_up(const int16_t* __restrict y, size_t rows, size_t channels, int32_t* __restrict sum) {
  for (size_t r = 0; r < rows; ++r, y += channels) {
    for (size_t c = 0; c < channels; ++c) sum[c] += y[c];
  }
}

void add_above(const int16_t* __restrict y, size_t rows, size_t channels, const int16_t* __restrict floor_mean,
               int32_t* __restrict sum, int32_t* __restrict count) {
  for (size_t r = 0; r < rows; ++r, y += channels) {
    for (size_t c = 0; c < channels; ++c) {
      const int32_t value = y[c], above = -static_cast<int32_t>(value > floor_mean[c]);
      sum[c] += value & above;
      count[c] -= above;
    }
  }
}

struct BlockSums {
  double *grad, *moment;
  int32_t *above, *below;
};

template <bool kMasked, typename Y>
void add_block(const Y* __restrict y, const float* __restrict grad, size_t rows, size_t channels,
               const RowThresholds& thresholds, uint8_t* __restrict codes, const BlockSums& sums) {
  const float* __restrict mask_from = thresholds.mask_from;
  const float* __restrict mask_to = thresholds.mask_to;
  const float* __restrict mean_low = thresholds.mean_low;
  const float* __restrict mean_high = thresholds.mean_high;
  const float* __restrict mean = thresholds.mean;
  double* __restrict grad_sum = sums.grad;
  double* __restrict moment = sums.moment;
  int32_t* __restrict above_sum = sums.above;
  int32_t* __restrict below_sum = sums.below;
  for (size_t r = 0; r < rows; ++r, y += channels, grad += channels, codes += channels) {
    for (size_t c = 0; c < channels; ++c) {
      const float value = static_cast<float>(y[c]);
      const int32_t above = value > mean_low[c], below = value < mean_high[c];
      int32_t code = above + 2 * below;
      float g = grad[c];
      if constexpr (kMasked) {
        const int32_t inside = static_cast<int32_t>(value >= mask_from[c]) & static_cast<int32_t>(value <= mask_to[c]);
        g *= static_cast<float>(inside);
        code += 4 * inside;
      }
      codes[c] = static_cast<uint8_t>(code);
      grad_sum[c] += static_cast<double>(g);
      moment[c] += static_cast<double>((value - mean[c]) * g);
      above_sum[c] += above;
      below_sum[c] += below;
    }
  }
}

template <bool kMasked>
void apply_block(float* __restrict grad, const uint8_t* __restrict codes, size_t rows, size_t channels,
                 const float* __restrict offset, const float* __restrict slope, const float* __restrict inverse) {
  for (size_t r = 0; r < rows; ++r, grad += channels, codes += channels) {
    for (size_t c = 0; c < channels; ++c) {
      const int32_t code = codes[c];
      const float side = static_cast<float>((code & 1) - (code >> 1 & 1));
      float g = grad[c];
      if constexpr (kMasked) g *= static_cast<float>(code >> 2 & 1);
      grad[c] = (g - offset[c] - side * slope[c]) * inverse[c];
    }
  }
}

}  // namespace

void row_statistics(const int16_t* y, size_t rows, size_t channels, int threads, int64_t* sum, double* deviation) {
  std::vector<int32_t> parts(blocks_of(rows) * channels), counts(parts.size());
  for_blocks(rows, threads, [&](size_t block, size_t first, size_t some) {
    add_up(y + first * channels, some, channels, parts.data() + block * channels);
  });
  std::fill_n(sum, channels, int64_t{0});
  add_parts(parts, channels, sum);
  std::vector<int16_t> floor_mean(channels);
  const int64_t count = static_cast<int64_t>(rows);
  for (size_t c = 0; c < channels; ++c) {
    const int64_t quotient = count == 0 ? 0 : sum[c] / count;
    floor_mean[c] = static_cast<int16_t>(quotient - (count != 0 && sum[c] % count < 0));
  }
  std::fill(parts.begin(), parts.end(), 0);
  for_blocks(rows, threads, [&](size_t block, size_t first, size_t some) {
    add_above(y + first * channels, some, channels, floor_mean.data(), parts.data() + block * channels,
              counts.data() + block * channels);
  });
  std::vector<int64_t> above(channels), number(channels);
  add_parts(parts, channels, above.data());
  add_parts(counts, channels, number.data());
  // Both sides of the mean deviate by the same sum.
  for (size_t c = 0; c < channels; ++c) {
    deviation[c] = 2 * (static_cast<double>(count) * static_cast<double>(above[c]) -
                        static_cast<double>(number[c]) * static_cast<double>(sum[c]));
  }
}

template <typename Y>
void add_gradient_rows(const Y* y, const float* grad, size_t rows, size_t channels, const RowThresholds& t, int threads,
                       uint8_t* codes, const RowSums& sums) {
  const size_t size = blocks_of(rows) * channels;
  std::vector<double> grads(size), moments(size);
  std::vector<int32_t> above(size), below(size);
  for_blocks(rows, threads, [&](size_t block, size_t first, size_t some) {
    const size_t from = first * channels, at = block * channels;
    const BlockSums parts{grads.data() + at, moments.data() + at, above.data() + at, below.data() + at};
    const auto add = t.mask_from == nullptr ? add_block<false, Y> : add_block<true, Y>;
    add(y + from, grad + from, some, channels, t, codes + from, parts);
  });
  add_parts(grads, channels, sums.grad);
  add_parts(moments, channels, sums.moment);
  add_parts(above, channels, sums.above);
  add_parts(below, channels, sums.below);
}

template void add_gradient_rows(const int16_t*, const float*, size_t, size_t, const RowThresholds&, int, uint8_t*,
                                const RowSums&);
template void add_gradient_rows(const float*, const float*, size_t, size_t, const RowThresholds&, int, uint8_t*,
                                const RowSums&);

void apply_gradient_rows(float* grad, const uint8_t* codes, size_t rows, size_t channels, bool is_masked,
                         const float* offset, const float* slope, const float* inverse, int threads) {
  for_blocks(rows, threads, [&](size_t, size_t first, size_t some) {
    const auto apply = is_masked ? apply_block<true> : apply_block<false>;
    apply(grad + first * channels, codes + first * channels, some, channels, offset, slope, inverse);
  });
}

}  // namespace bitfleet
