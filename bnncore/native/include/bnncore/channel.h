// What l1 batch normalisation, the sign and its straight-through estimator need of one channel: integer sums over the
// batch, integer thresholds, and the exact gradient in 8-bit integers.
//
// Notation, for one channel over a batch of B samples: y = integer pre-activations, S = sum y, mu = S / B,
// D = sum |B y - S| (an integer), psi = D / B^2 = mean |y - mu|, x = (y - mu) / psi + beta.
// A channel whose y are all equal has psi = 0; it is called dead: x = beta, and no gradient passes.
//
// Source: l1 batch normalisation of Wang et al., arXiv:2102.04270, Algorithm 2; the gradient here is the exact
// derivative, not the paper's approximation: with v = dx / psi and s = sgn(y - mu),
//   dy = v - mean(v) - (s - mean(s)) * mean(v * (y - mu) / psi).
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/random.h"

namespace bitfleet {

struct ChannelStatistics {
  int64_t sum;            // S
  int64_t abs_deviation;  // D
};

// Integer comparisons that stand for the real-valued ones: sign(x) = +1 iff y >= sign_from; |x| <= 1 iff
// mask_from <= y <= mask_to.
struct ChannelThresholds {
  int32_t sign_from;
  int32_t mask_from;
  int32_t mask_to;
};

struct GradientSums {
  int64_t q;        // sum of q over the samples with |x| <= 1
  int64_t qy;       // sum of q * y over the same samples
  int32_t above;    // samples with y > mu
  int32_t at_mean;  // samples with y = mu
};

// dy in units of the scale of q: (q - offset) * gain, where the offset depends on the side of mu that y lies on.
struct GradientCoefficients {
  float offset_below;
  float offset_at;     // for y = floor(mu)
  float offset_above;  // for y > floor(mu), which is y > mu
  int32_t floor_mean;
  ChannelThresholds thresholds;
};

struct QuantiseResult {
  int32_t saturated;  // elements whose magnitude exceeded 127 before rounding
  float max_abs;      // largest |(q - offset) * gain|, before saturation
};

// mu and psi of a channel, in double: S / B and D / B^2.
struct ChannelMoments {
  double mean;
  double mean_abs_dev;
};

inline ChannelMoments channel_moments(const ChannelStatistics& statistics, int count) {
  const double n = count;
  return {static_cast<double>(statistics.sum) / n, static_cast<double>(statistics.abs_deviation) / (n * n)};
}

// Some channels' mu, psi and thresholds side by side, so that vectors take them together.
inline constexpr int kNormRows = 16;
struct ChannelNorms {
  double mean[kNormRows], mean_abs_dev[kNormRows];
  int32_t sign_from[kNormRows], mask_from[kNormRows], mask_to[kNormRows];

  ChannelThresholds thresholds(int row) const { return {sign_from[row], mask_from[row], mask_to[row]}; }
};

// What is done to products y, which are int16 or int32 (Y).
template <typename Y>
struct ProductKernels {
  // Statistics of y[0..count).
  ChannelStatistics (*statistics)(const Y* y, int count);
  // bits[b] = bit r set iff y[r][b] < sign_from[r], for rows <= 16. All of bits[0..count) is written.
  void (*emit_signs)(const Y* y, size_t y_stride, const int32_t* sign_from, int rows, int count, uint16_t* bits);
  // `y_bound` >= |y| limits how many products are summed in 32 bits.
  GradientSums (*gradient_sums)(const Y* y, const int8_t* q, int count, int64_t y_bound,
                                const ChannelThresholds& thresholds, int32_t floor_mean, bool mean_is_integer);
  // Largest |q - offset| over the batch, where q counts as 0 outside the mask.
  float (*gradient_max)(const Y* y, const int8_t* q, int count, const GradientCoefficients& coefficients);
  // Replaces q by round_stochastic((q - offset) * gain). Element b draws random_half(first_index + b).
  QuantiseResult (*gradient_quantise)(const Y* y, int8_t* q, int count, const GradientCoefficients& coefficients,
                                      float gain, RandomStream stream, uint32_t first_index);
};

struct ChannelKernels {
  ProductKernels<int16_t> narrow;
  ProductKernels<int32_t> wide;
  // channel_moments of rows <= kNormRows channels.
  void (*moments)(const ChannelStatistics* statistics, int count, int rows, ChannelNorms& norms);
  // Thresholds for x = (y - mean) / mean_abs_dev + beta, whether those are of the batch or running.
  void (*thresholds)(const float* beta, int rows, ChannelNorms& norms);
  // q[k] = round_stochastic((whole - 2 sums[k]) * gain) for k in [0, count); element k draws
  // random_half(first_index + k). The sums over bits of sign_gemm.h become sums over signs on the way.
  QuantiseResult (*integer_quantise)(const int32_t* sums, int32_t whole, int8_t* q, int count, float gain,
                                     RandomStream stream, uint32_t first_index);
  // Largest |whole - 2 sums[k]|.
  int32_t (*integer_max)(const int32_t* sums, int32_t whole, int count);
  // sums[r] = sum of values[r][0..count).
  void (*byte_sums)(const int8_t* values, size_t stride, int rows, int count, int32_t* sums);
  // Sum of |factor * sums[k] + offset|.
  int64_t (*integer_abs_sum)(const int32_t* sums, int32_t factor, int32_t offset, int count);

  template <typename Y>
  const ProductKernels<Y>& of() const {
    if constexpr (sizeof(Y) == sizeof(int16_t)) {
      return narrow;
    } else {
      return wide;
    }
  }
};

// Coefficients of the exact l1 gradient. `mean_abs_dev` is not 0.
GradientCoefficients gradient_coefficients(const ChannelStatistics& statistics, int64_t floor_mean, double mean_abs_dev,
                                           const ChannelThresholds& thresholds, const GradientSums& sums, int count);

// floor(sum / count), for count > 0.
int64_t floor_divide(int64_t sum, int64_t count);

namespace portable {
extern const ChannelKernels channel_kernels;
}
namespace avx2 {
extern const ChannelKernels channel_kernels;
}
namespace avx512 {
extern const ChannelKernels channel_kernels;
}

}  // namespace bitfleet
