// Statistics, thresholds and gradients of a channel, against the portable loops.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include "check.h"

namespace bitfleet::test {

namespace {

const int kCounts[] = {1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 100, 257, 1000};
const int kBounds[] = {1, 9, 4608, 199920};

template <typename Y>
struct Channel {
  Array<Y> y;
  Array<int8_t> q;

  Channel(int count, int bound, size_t misalignment, Random& random)
      : y(static_cast<size_t>(count), misalignment), q(static_cast<size_t>(count), misalignment) {
    y.generate([&] { return random.between(-bound, bound); });
    q.generate([&] { return random.between(-127, 127); });
  }
};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// Calls check(channel, count, bound, random) for products of both widths.
template <typename Check>
void over_channels(uint64_t seed, Check check) {
  Random random(seed);
  for (int count : kCounts) {
    for (int bound : kBounds) {
      for (size_t misalignment : {0, 1}) {
        if (bound <= std::numeric_limits<int16_t>::max()) {
          check(Channel<int16_t>(count, bound, misalignment, random), count, bound, random);
        }
        check(Channel<int32_t>(count, bound, misalignment, random), count, bound, random);
      }
    }
  }
}

template <typename Y>
const ProductKernels<Y>& kernels_of(const Kernels& kernels, const Channel<Y>&) {
  return kernels.channel->of<Y>();
}

template <typename Y>
void check_signs(const Kernels& kernels, const Kernels& portable) {
  Random random(2);
  for (int count : kCounts) {
    for (int rows : {1, 3, 8, 15, 16}) {
      const size_t stride = static_cast<size_t>(count) + 2;
      Array<Y> y(static_cast<size_t>(rows - 1) * stride + static_cast<size_t>(count), 1);
      Array<int32_t> from(static_cast<size_t>(rows));
      y.generate([&] { return random.between(-5, 5); });
      from.generate([&] { return random.between(-3, 3); });
      from[0] = count % 2 != 0 ? INT32_MIN : INT32_MAX;  // dead channels
      Array<uint16_t> bits(static_cast<size_t>(count), 1);
      bits.fill(0xff);
      Array<uint16_t> wanted = bits;
      kernels.channel->of<Y>().emit_signs(y.data(), stride, from.data(), rows, count, bits.data());
      portable.channel->of<Y>().emit_signs(y.data(), stride, from.data(), rows, count, wanted.data());
      CHECK_SAME(bits, wanted, text(rows, " rows of ", count));
      for (size_t b = 0; b < bits.size(); ++b) {
        for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
          CHECK_EQUAL((bits[b] >> r & 1) != 0, int32_t{y[r * stride + b]} < from[r]);
        }
      }
    }
  }
}

}  // namespace

KERNEL_TEST(channel_statistics) {
  const auto check = [&](const auto& channel, int count) {
    const ChannelStatistics found = kernels_of(kernels, channel).statistics(channel.y.data(), count);
    int64_t sum = 0, deviation = 0;
    for (size_t b = 0; b < channel.y.size(); ++b) sum += channel.y[b];
    for (size_t b = 0; b < channel.y.size(); ++b) {
      const int64_t difference = int64_t{count} * channel.y[b] - sum;
      deviation += difference < 0 ? -difference : difference;
    }
    CHECK_EQUAL(found.sum, sum);
    CHECK_EQUAL(found.abs_deviation, deviation);
  };
  over_channels(1, [&](const auto& channel, int count, int, Random&) { check(channel, count); });
  // More than 16-bit sums of 16-bit products hold, all of one sign.
  Random random(9);
  Channel<int16_t> large(70001, 1, 0, random);
  large.y.generate([] { return 32766; });
  check(large, 70001);
}

KERNEL_TEST(channel_emit_signs) {
  check_signs<int16_t>(kernels, portable);
  check_signs<int32_t>(kernels, portable);
}

// x = (y - mean) / mean_abs_dev + beta from its definition: the thresholds say where its sign and its mask change.
KERNEL_TEST(channel_norms) {
  Random random(7);
  for (int rows = 1; rows <= kNormRows; ++rows) {
    constexpr int kCount = 96;
    ChannelStatistics statistics[kNormRows];
    float beta[kNormRows];
    for (int r = 0; r < rows; ++r) {
      const int bound = r % 3 == 0 ? 3 : 1 << (r + 8);
      statistics[r] = {random.between(-bound, bound) * kCount + 5,
                       r % 5 == 4 ? 0 : random.between(1, bound) * kCount * kCount};
      beta[r] = r % 5 == 4 ? static_cast<float>(r % 4) - 1.5f : random.real(2.0f);
    }
    ChannelNorms norms;
    kernels.channel->moments(statistics, kCount, rows, norms);
    kernels.channel->thresholds(beta, rows, norms);
    for (int r = 0; r < rows; ++r) {
      const double mean = static_cast<double>(statistics[r].sum) / kCount;
      const double deviation = static_cast<double>(statistics[r].abs_deviation) / (double{kCount} * kCount);
      CHECK(norms.mean[r] == mean && norms.mean_abs_dev[r] == deviation);
      const double b = beta[r];
      const auto same = [](int32_t found, double wanted) { return static_cast<double>(found) == wanted; };
      if (deviation > 0.0) {
        CHECK(same(norms.sign_from[r], std::ceil(mean - b * deviation)));
        CHECK(same(norms.mask_from[r], std::ceil(mean - (1.0 + b) * deviation)));
        CHECK(same(norms.mask_to[r], std::floor(mean + (1.0 - b) * deviation)));
      } else {
        CHECK_EQUAL(norms.sign_from[r], b >= 0.0 ? INT32_MIN : INT32_MAX);
        CHECK_EQUAL(norms.mask_from[r], std::abs(b) <= 1.0 ? INT32_MIN : INT32_MAX);
        CHECK_EQUAL(norms.mask_to[r], std::abs(b) <= 1.0 ? INT32_MAX : INT32_MIN);
      }
    }
  }
  // Thresholds beyond 32 bits are moved to their ends.
  ChannelNorms far{{3e9, -3e9}, {1.0, 1.0}, {}, {}, {}};
  const float none[2] = {0.0f, 0.0f};
  kernels.channel->thresholds(none, 2, far);
  CHECK(far.sign_from[0] == INT32_MAX && far.mask_to[0] == INT32_MAX);
  CHECK(far.sign_from[1] == INT32_MIN && far.mask_to[1] == INT32_MIN);
}

KERNEL_TEST(channel_gradient) {
  over_channels(3, [&](const auto& channel, int count, int bound, Random& random) {
    const auto& here = kernels_of(kernels, channel);
    const auto& there = kernels_of(portable, channel);
    const auto* y = channel.y.data();
    const ChannelStatistics statistics = there.statistics(y, count);
    if (statistics.abs_deviation == 0) return;  // a dead channel never gets here
    const float beta = random.real(2.0f);
    ChannelNorms norms;
    portable.channel->moments(&statistics, count, 1, norms);
    portable.channel->thresholds(&beta, 1, norms);
    const ChannelThresholds thresholds = norms.thresholds(0);
    const int32_t floor_mean = static_cast<int32_t>(floor_divide(statistics.sum, count));
    const bool whole = statistics.sum % count == 0;
    const GradientSums sums = here.gradient_sums(y, channel.q.data(), count, bound, thresholds, floor_mean, whole);
    const GradientSums wanted = there.gradient_sums(y, channel.q.data(), count, bound, thresholds, floor_mean, whole);
    CHECK_EQUAL(sums.q, wanted.q);
    CHECK_EQUAL(sums.qy, wanted.qy);
    CHECK_EQUAL(sums.above, wanted.above);
    CHECK_EQUAL(sums.at_mean, wanted.at_mean);

    const GradientCoefficients coefficients =
        gradient_coefficients(statistics, floor_mean, norms.mean_abs_dev[0], thresholds, sums, count);
    CHECK(same_bits(here.gradient_max(y, channel.q.data(), count, coefficients),
                    there.gradient_max(y, channel.q.data(), count, coefficients)));
    for (auto [gain, first] : {std::pair{0.01f, 0u}, {1.0f, 37u}, {40.0f, 0xfffffff0u}}) {
      Array<int8_t> q = channel.q, portable_q = channel.q;
      const QuantiseResult found = here.gradient_quantise(y, q.data(), count, coefficients, gain, {5, 6}, first);
      const QuantiseResult expected =
          there.gradient_quantise(y, portable_q.data(), count, coefficients, gain, {5, 6}, first);
      CHECK_SAME(q, portable_q, text("gain ", gain, ", count ", count));
      CHECK_EQUAL(found.saturated, expected.saturated);
      CHECK(same_bits(found.max_abs, expected.max_abs));
    }
  });
}

KERNEL_TEST(channel_integers) {
  Random random(4);
  for (int count : kCounts) {
    for (int bound : kBounds) {
      const Channel<int32_t> channel(count, bound, 1, random);
      const int32_t whole = static_cast<int32_t>(random.between(-bound, bound));
      for (float gain : {0.01f, 42.0f / static_cast<float>(bound), 3.0f}) {
        Array<int8_t> q = channel.q, wanted = channel.q;
        const QuantiseResult found =
            kernels.channel->integer_quantise(channel.y.data(), whole, q.data(), count, gain, {7, 8}, 0xfffffff0u);
        const QuantiseResult expected = portable.channel->integer_quantise(channel.y.data(), whole, wanted.data(),
                                                                           count, gain, {7, 8}, 0xfffffff0u);
        CHECK_SAME(q, wanted, text("gain ", gain, ", count ", count));
        CHECK_EQUAL(found.saturated, expected.saturated);
        CHECK(same_bits(found.max_abs, expected.max_abs));
      }
      int32_t largest = 0;
      int64_t sum = 0;
      for (size_t b = 0; b < channel.y.size(); ++b) {
        largest = std::max(largest, std::abs(whole - 2 * channel.y[b]));
        sum += std::abs(3 * channel.y[b] - 5);
      }
      CHECK_EQUAL(kernels.channel->integer_max(channel.y.data(), whole, count), largest);
      CHECK_EQUAL(kernels.channel->integer_abs_sum(channel.y.data(), 3, -5, count), sum);
    }
  }
}

KERNEL_TEST(channel_byte_sums) {
  Random random(5);
  for (int count : kCounts) {
    for (int rows : {1, 2, 5}) {
      const size_t stride = static_cast<size_t>(count) + 3;
      Array<int8_t> values(static_cast<size_t>(rows - 1) * stride + static_cast<size_t>(count), 1);
      values.generate([&] { return count == 1000 ? -127 : random.between(-127, 127); });
      Array<int32_t> sums(static_cast<size_t>(rows), 1), wanted = sums;
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        for (size_t k = 0; k < static_cast<size_t>(count); ++k) wanted[r] += values[r * stride + k];
      }
      kernels.channel->byte_sums(values.data(), stride, rows, count, sums.data());
      CHECK_SAME(sums, wanted, text(rows, " rows of ", count));
    }
  }
}

}  // namespace bitfleet::test
