// Per-channel arithmetic in double: a few operations a channel, the same on every instruction set.
#include "bnncore/channel.h"

namespace bitfleet {

int64_t floor_divide(int64_t sum, int64_t count) {
  const int64_t quotient = sum / count;
  return quotient - (sum % count != 0 && sum < 0);
}

GradientCoefficients gradient_coefficients(const ChannelStatistics& statistics, int64_t floor_mean, double mean_abs_dev,
                                           const ChannelThresholds& thresholds, const GradientSums& sums, int count) {
  const double n = count;
  GradientCoefficients c{};
  c.floor_mean = static_cast<int32_t>(floor_mean);
  const bool mean_is_integer = floor_mean * count == statistics.sum;
  c.thresholds = thresholds;
  const double mean_q = static_cast<double>(sums.q) / n;
  // mean(q (y - mu) / psi), from integers: sum q (B y - S) / (B^2 psi).
  const double moment = static_cast<double>(int64_t{count} * sums.qy - statistics.sum * sums.q);
  const double mean_qx = moment / (n * n * mean_abs_dev);
  const double below = n - sums.above - sums.at_mean;
  const double mean_side = (static_cast<double>(sums.above) - below) / n;
  c.offset_below = static_cast<float>(mean_q + (-1.0 - mean_side) * mean_qx);
  // A y equal to floor(mu) lies at the mean only if mu is an integer, else below it.
  c.offset_at = mean_is_integer ? static_cast<float>(mean_q - mean_side * mean_qx) : c.offset_below;
  c.offset_above = static_cast<float>(mean_q + (1.0 - mean_side) * mean_qx);
  return c;
}

}  // namespace bitfleet
