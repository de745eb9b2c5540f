// Which integers stand for a layer's real weights: a few operations a weight, the same on every instruction set.
#include <algorithm>
#include <bit>
#include <cmath>

#include "bnncore/fixed_point.h"

namespace bitfleet {

FixedPoint to_fixed_point(const float* weights, int rows, int depth, int64_t largest_input, int64_t most, int bits,
                          int16_t* integers) {
  constexpr int kWeightBits = 14;
  const int weight_bits = std::min(kWeightBits, 31 - static_cast<int>(std::bit_width(static_cast<uint64_t>(most))));
  const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(depth);
  float largest = 0.0f;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(weights[i]));
  int exponent_of_largest = 0;
  std::frexp(largest, &exponent_of_largest);
  const int exponent = weight_bits - exponent_of_largest;
  int64_t bound = 0;
  for (int r = 0; r < rows; ++r) {
    int64_t sum = 0;
    for (int k = 0; k < depth; ++k) {
      const size_t i = static_cast<size_t>(r) * static_cast<size_t>(depth) + static_cast<size_t>(k);
      const double value = std::nearbyint(std::ldexp(double{weights[i]}, exponent));
      integers[i] = static_cast<int16_t>(value);
      sum += std::abs(static_cast<int64_t>(value));
    }
    bound = std::max(bound, sum);
  }
  const int width = static_cast<int>(std::bit_width(static_cast<uint64_t>(largest_input * bound)));
  return {exponent, std::max(0, width - bits)};
}

Scaling stream_scaling(const ChannelMoments& moments, float beta, int limit) {
  const double inverse = moments.mean_abs_dev > 0.0 ? 1.0 / moments.mean_abs_dev : 0.0;
  const float high = static_cast<float>(limit);
  return {static_cast<float>(kStreamUnits * inverse),
          static_cast<float>(kStreamUnits * (double{beta} - moments.mean * inverse)), -high, high, -high};
}

}  // namespace bitfleet
