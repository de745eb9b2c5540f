// Statistics, thresholds and gradients of a channel, against the portable loops.
#include "check.h"

namespace bitfleet::test {

namespace {

const int kCounts[] = {1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 100, 257, 1000};
const int kBounds[] = {1, 9, 4608, 199920};

struct Channel {
  Array<int32_t> y;
  Array<int8_t> q;

  Channel(int count, int bound, size_t misalignment, Random& random)
      : y(static_cast<size_t>(count), misalignment), q(static_cast<size_t>(count), misalignment) {
    y.generate([&] { return random.between(-bound, bound); });
    q.generate([&] { return random.between(-127, 127); });
  }
};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

template <typename Check>
void over_channels(uint64_t seed, Check check) {
  Random random(seed);
  for (int count : kCounts) {
    for (int bound : kBounds) {
      for (size_t misalignment : {0, 1}) check(Channel(count, bound, misalignment, random), count, bound, random);
    }
  }
}

}  // namespace

KERNEL_TEST(channel_statistics) {
  over_channels(1, [&](const Channel& channel, int count, int, Random&) {
    const ChannelStatistics found = kernels.channel->statistics(channel.y.data(), count);
    int64_t sum = 0, deviation = 0;
    for (size_t b = 0; b < channel.y.size(); ++b) sum += channel.y[b];
    for (size_t b = 0; b < channel.y.size(); ++b) {
      const int64_t difference = int64_t{count} * channel.y[b] - sum;
      deviation += difference < 0 ? -difference : difference;
    }
    CHECK_EQUAL(found.sum, sum);
    CHECK_EQUAL(found.abs_deviation, deviation);
  });
}

KERNEL_TEST(channel_emit_signs) {
  Random random(2);
  for (int count : kCounts) {
    for (int rows : {1, 3, 8, 15, 16}) {
      const size_t stride = static_cast<size_t>(count) + 2;
      Array<int32_t> y(static_cast<size_t>(rows - 1) * stride + static_cast<size_t>(count), 1);
      Array<int32_t> from(static_cast<size_t>(rows));
      y.generate([&] { return random.between(-5, 5); });
      from.generate([&] { return random.between(-3, 3); });
      from[0] = count % 2 != 0 ? INT32_MIN : INT32_MAX;  // dead channels
      Array<uint16_t> bits(static_cast<size_t>(count), 1);
      bits.fill(0xff);
      Array<uint16_t> wanted = bits;
      kernels.channel->emit_signs(y.data(), stride, from.data(), rows, count, bits.data());
      portable.channel->emit_signs(y.data(), stride, from.data(), rows, count, wanted.data());
      CHECK_SAME(bits, wanted, text(rows, " rows of ", count));
    }
  }
}

KERNEL_TEST(channel_gradient) {
  over_channels(3, [&](const Channel& channel, int count, int bound, Random& random) {
    const ChannelStatistics statistics = portable.channel->statistics(channel.y.data(), count);
    if (statistics.abs_deviation == 0) return;  // a dead channel never gets here
    const float beta = random.real(2.0f);
    const ChannelMoments moments = channel_moments(statistics, count);
    const ChannelThresholds thresholds = channel_thresholds(moments.mean, moments.mean_abs_dev, beta);
    const int32_t floor_mean = static_cast<int32_t>(floor_divide(statistics.sum, count));
    const bool whole = statistics.sum % count == 0;
    const GradientSums sums =
        kernels.channel->gradient_sums(channel.y.data(), channel.q.data(), count, bound, thresholds, floor_mean, whole);
    const GradientSums wanted = portable.channel->gradient_sums(channel.y.data(), channel.q.data(), count, bound,
                                                                thresholds, floor_mean, whole);
    CHECK_EQUAL(sums.q, wanted.q);
    CHECK_EQUAL(sums.qy, wanted.qy);
    CHECK_EQUAL(sums.above, wanted.above);
    CHECK_EQUAL(sums.at_mean, wanted.at_mean);

    const GradientCoefficients coefficients = gradient_coefficients(statistics, thresholds, sums, count);
    CHECK(same_bits(kernels.channel->gradient_max(channel.y.data(), channel.q.data(), count, coefficients),
                    portable.channel->gradient_max(channel.y.data(), channel.q.data(), count, coefficients)));
    for (float gain : {0.01f, 1.0f, 40.0f}) {
      Array<int8_t> q = channel.q, portable_q = channel.q;
      const QuantiseResult found = kernels.channel->gradient_quantise(channel.y.data(), q.data(), count, coefficients,
                                                                      gain, {5, 6}, 0xfffffff0u, 7);
      const QuantiseResult expected = portable.channel->gradient_quantise(channel.y.data(), portable_q.data(), count,
                                                                          coefficients, gain, {5, 6}, 0xfffffff0u, 7);
      CHECK_SAME(q, portable_q, text("gain ", gain, ", count ", count));
      CHECK_EQUAL(found.saturated, expected.saturated);
      CHECK(same_bits(found.max_abs, expected.max_abs));
    }
  });
}

KERNEL_TEST(channel_integers) {
  over_channels(4, [&](const Channel& channel, int count, int bound, Random&) {
    for (float gain : {0.01f, 127.0f / static_cast<float>(bound), 3.0f}) {
      Array<int8_t> q = channel.q, wanted = channel.q;
      const QuantiseResult found =
          kernels.channel->integer_quantise(channel.y.data(), q.data(), count, gain, {7, 8}, 0xfffffff0u);
      const QuantiseResult expected =
          portable.channel->integer_quantise(channel.y.data(), wanted.data(), count, gain, {7, 8}, 0xfffffff0u);
      CHECK_SAME(q, wanted, text("gain ", gain, ", count ", count));
      CHECK_EQUAL(found.saturated, expected.saturated);
      CHECK(same_bits(found.max_abs, expected.max_abs));
    }
    int32_t largest = 0;
    int64_t sum = 0;
    for (size_t b = 0; b < channel.y.size(); ++b) {
      const int32_t magnitude = channel.y[b] < 0 ? -channel.y[b] : channel.y[b];
      largest = magnitude > largest ? magnitude : largest;
      sum += magnitude;
    }
    CHECK_EQUAL(kernels.channel->integer_max(channel.y.data(), count), largest);
    CHECK_EQUAL(kernels.channel->integer_abs_sum(channel.y.data(), count), sum);
  });
}

}  // namespace bitfleet::test
