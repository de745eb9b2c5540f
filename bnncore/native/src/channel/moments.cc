// Per-channel arithmetic in double: a few operations a channel, the same on every instruction set.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bnncore/channel.h"

namespace bitfleet {

namespace {

constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
constexpr int32_t kMax = std::numeric_limits<int32_t>::max();

int64_t to_int64(double value) {
  return static_cast<int64_t>(std::clamp(value, static_cast<double>(kMin), static_cast<double>(kMax)));
}

// Rounded and clamped by a conversion, which every CPU has; std::floor would be a call of the library on some.
int32_t floor_to_int32(double value) {
  const int64_t whole = to_int64(value);
  return static_cast<int32_t>(whole - (whole > kMin && value < static_cast<double>(whole)));
}

int32_t ceil_to_int32(double value) {
  const int64_t whole = to_int64(value);
  return static_cast<int32_t>(whole + (whole < kMax && value > static_cast<double>(whole)));
}

}  // namespace

int64_t floor_divide(int64_t sum, int64_t count) {
  const int64_t quotient = sum / count;
  return quotient - (sum % count != 0 && sum < 0);
}

ChannelMoments channel_moments(const ChannelStatistics& statistics, int count) {
  const double n = count;
  return {static_cast<double>(statistics.sum) / n, static_cast<double>(statistics.abs_deviation) / (n * n)};
}

ChannelThresholds channel_thresholds(double mean, double mean_abs_dev, float beta) {
  const double b = beta;
  if (!(mean_abs_dev > 0.0)) {  // dead channel: x = beta whatever y is
    const bool passes = b >= -1.0 && b <= 1.0;
    return {b >= 0.0 ? kMin : kMax, passes ? kMin : kMax, passes ? kMax : kMin};
  }
  return {ceil_to_int32(mean - b * mean_abs_dev), ceil_to_int32(mean - (1.0 + b) * mean_abs_dev),
          floor_to_int32(mean + (1.0 - b) * mean_abs_dev)};
}

GradientCoefficients gradient_coefficients(const ChannelStatistics& statistics, const ChannelThresholds& thresholds,
                                           const GradientSums& sums, int count) {
  const double n = count;
  const ChannelMoments moments = channel_moments(statistics, count);
  const int64_t floor_mean = floor_divide(statistics.sum, count);
  GradientCoefficients c{};
  c.floor_mean = static_cast<int32_t>(floor_mean);
  const bool mean_is_integer = floor_mean * count == statistics.sum;
  c.thresholds = thresholds;
  const double mean_q = static_cast<double>(sums.q) / n;
  // mean(q (y - mu) / psi), from integers: sum q (B y - S) / (B^2 psi).
  const double moment = static_cast<double>(int64_t{count} * sums.qy - statistics.sum * sums.q);
  const double mean_qx = moment / (n * n * moments.mean_abs_dev);
  const double below = n - sums.above - sums.at_mean;
  const double mean_side = (static_cast<double>(sums.above) - below) / n;
  c.offset_below = static_cast<float>(mean_q + (-1.0 - mean_side) * mean_qx);
  // A y equal to floor(mu) lies at the mean only if mu is an integer, else below it.
  c.offset_at = mean_is_integer ? static_cast<float>(mean_q - mean_side * mean_qx) : c.offset_below;
  c.offset_above = static_cast<float>(mean_q + (1.0 - mean_side) * mean_qx);
  return c;
}

}  // namespace bitfleet
