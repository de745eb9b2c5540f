// The loops behind ChannelKernels, written once and compiled once per instruction set.
//
// Every file of this folder includes it and wraps each function in one that carries the target attribute; the bodies
// are always inlined into those, so the compiler vectorises the same source for each set. Element-wise IEEE
// arithmetic without contraction gives the same bits at any vector width; sums are integers; a maximum has no order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "../halves_inl.h"
#include "bnncore/channel.h"
#include "bnncore/rounding.h"

#define BITFLEET_INLINE static inline __attribute__((always_inline))

namespace bitfleet::loops {

BITFLEET_INLINE void moments(const ChannelStatistics* __restrict statistics, int count, int rows,
                             ChannelNorms& __restrict norms) {
  for (int r = 0; r < rows; ++r) {
    const ChannelMoments moments = channel_moments(statistics[r], count);
    norms.mean[r] = moments.mean;
    norms.mean_abs_dev[r] = moments.mean_abs_dev;
  }
}

inline constexpr int32_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();

// Rounded and clamped by conversions, which every CPU has for vectors; std::floor would be a call of the library on
// some.
BITFLEET_INLINE int32_t truncated(double value) {
  value = value < static_cast<double>(kLeast) ? static_cast<double>(kLeast) : value;
  return static_cast<int32_t>(value > static_cast<double>(kMost) ? static_cast<double>(kMost) : value);
}

BITFLEET_INLINE int32_t floor_to_int32(double value) {
  const int32_t whole = truncated(value);
  return whole - ((whole > kLeast) & (value < static_cast<double>(whole)));
}

BITFLEET_INLINE int32_t ceil_to_int32(double value) {
  const int32_t whole = truncated(value);
  return whole + ((whole < kMost) & (value > static_cast<double>(whole)));
}

BITFLEET_INLINE void thresholds(const float* __restrict beta, int rows, ChannelNorms& __restrict norms) {
  for (int r = 0; r < rows; ++r) {
    const double b = beta[r], mean = norms.mean[r], mean_abs_dev = norms.mean_abs_dev[r];
    norms.sign_from[r] = ceil_to_int32(mean - b * mean_abs_dev);
    norms.mask_from[r] = ceil_to_int32(mean - (1.0 + b) * mean_abs_dev);
    norms.mask_to[r] = floor_to_int32(mean + (1.0 - b) * mean_abs_dev);
  }
  for (int r = 0; r < rows; ++r) {
    if (norms.mean_abs_dev[r] > 0.0) continue;  // dead channel: x = beta whatever y is
    const bool passes = beta[r] >= -1.0f && beta[r] <= 1.0f;
    norms.sign_from[r] = beta[r] >= 0.0f ? kLeast : kMost;
    norms.mask_from[r] = passes ? kLeast : kMost;
    norms.mask_to[r] = passes ? kMost : kLeast;
  }
}

// Elements whose sum fits 32 bits.
template <typename Y>
inline constexpr int kSumBlock = sizeof(Y) == 2 ? 1 << 15 : 0;

template <typename Y>
BITFLEET_INLINE int64_t sum_of(const Y* y, int count) {
  int64_t total = 0;
  if constexpr (sizeof(Y) == 2) {
    for (int start = 0; start < count; start += kSumBlock<Y>) {
      const int end = std::min(count, start + kSumBlock<Y>);
      int32_t sum = 0;
      for (int b = start; b < end; ++b) sum += y[b];
      total += sum;
    }
  } else {
    for (int b = 0; b < count; ++b) total += y[b];
  }
  return total;
}

template <typename Y>
BITFLEET_INLINE ChannelStatistics statistics(const Y* y, int count) {
  const int64_t sum = sum_of(y, count);
  // The deviations B y - S sum to zero, so D is twice the sum of the positive ones.
  const Y floor_mean = static_cast<Y>(floor_divide(sum, count));
  int64_t sum_above = 0, above = 0;
  if constexpr (sizeof(Y) == 2) {
    for (int start = 0; start < count; start += kSumBlock<Y>) {
      const int end = std::min(count, start + kSumBlock<Y>);
      int32_t part = 0, number = 0;
      for (int b = start; b < end; ++b) {
        const Y over = static_cast<Y>(-(y[b] > floor_mean));  // all ones, or 0
        part += static_cast<Y>(y[b] & over);
        number -= over;
      }
      sum_above += part;
      above += number;
    }
  } else {
    for (int b = 0; b < count; ++b) {
      const bool is_above = y[b] > floor_mean;
      sum_above += is_above ? y[b] : 0;
      above += is_above;
    }
  }
  return {sum, 2 * (int64_t{count} * sum_above - above * sum)};
}

template <typename Y>
BITFLEET_INLINE void emit_signs(const Y* y, size_t y_stride, const int32_t* sign_from, int rows, int count,
                                uint16_t* bits) {
  for (int b = 0; b < count; ++b) bits[b] = 0;
  for (int r = 0; r < rows; ++r) {
    const Y* row = y + r * y_stride;
    // No int16 product reaches the ends of its range, so a threshold beyond them may be moved there.
    const Y from = static_cast<Y>(std::clamp<int32_t>(sign_from[r], std::numeric_limits<Y>::min() + (sizeof(Y) == 2),
                                                      std::numeric_limits<Y>::max()));
    const uint16_t bit = static_cast<uint16_t>(1u << r);
    for (int b = 0; b < count; ++b) bits[b] |= row[b] < from ? bit : uint16_t{0};
  }
}

template <typename Y>
BITFLEET_INLINE GradientSums gradient_sums(const Y* y, const int8_t* q, int count, int64_t y_bound,
                                           const ChannelThresholds t, int32_t floor_mean, bool mean_is_integer) {
  const int64_t fits = INT32_MAX / (127 * std::max<int64_t>(y_bound, 1));
  const int block = static_cast<int>(std::clamp<int64_t>(fits, 1, 1 << 15));
  GradientSums sums{};
  for (int start = 0; start < count; start += block) {
    const int end = std::min(count, start + block);
    int32_t sum_q = 0, sum_qy = 0, above = 0, at = 0;
    for (int b = start; b < end; ++b) {
      const int32_t value = y[b];
      const int32_t passes = -static_cast<int32_t>((value >= t.mask_from) & (value <= t.mask_to));  // 0 or all ones
      const int32_t masked = q[b] & passes;
      sum_q += masked;
      sum_qy += masked * value;
      above += value > floor_mean;
      at += value == floor_mean;
    }
    sums.q += sum_q;
    sums.qy += sum_qy;
    sums.above += above;
    sums.at_mean += mean_is_integer ? at : 0;
  }
  return sums;
}

// q - offset for one element: the one place where mask and side of the mean enter.
BITFLEET_INLINE float centred(int32_t y, int32_t q, const GradientCoefficients& c) {
  const int32_t passes = -static_cast<int32_t>((y >= c.thresholds.mask_from) & (y <= c.thresholds.mask_to));
  const float masked = static_cast<float>(q & passes);
  float offset = y > c.floor_mean ? c.offset_above : c.offset_below;
  offset = y == c.floor_mean ? c.offset_at : offset;
  return masked - offset;
}

// |x| as the bits of a float: for values without sign these order like the floats, and an integer maximum vectorises.
BITFLEET_INLINE int32_t magnitude_bits(float x) { return std::bit_cast<int32_t>(x) & 0x7fffffff; }

inline constexpr int32_t kInt8LimitBits = std::bit_cast<int32_t>(kInt8Limit);

template <typename Y>
BITFLEET_INLINE float gradient_max(const Y* y, const int8_t* q, int count, const GradientCoefficients& c) {
  int32_t largest = 0;
  for (int b = 0; b < count; ++b) largest = std::max(largest, magnitude_bits(centred(y[b], q[b], c)));
  return std::bit_cast<float>(largest);
}

// The coefficients come by value and the arrays are restrict: an int8_t store may alias anything otherwise.
template <typename Y>
BITFLEET_INLINE QuantiseResult gradient_quantise(const Y* __restrict y, int8_t* __restrict q, int count,
                                                 const GradientCoefficients c, float gain, RandomStream stream,
                                                 uint32_t first_index) {
  int32_t saturated = 0, largest = 0;
  for (int start = 0; start < count; start += kHalvesAtOnce) {
    const int end = std::min(start + kHalvesAtOnce, count);
    uint16_t room[kHalvesRoom];
    const uint16_t* __restrict halves =
        random_halves(stream, first_index + static_cast<uint32_t>(start), end - start, room);
    for (int b = start; b < end; ++b) {
      const float value = centred(y[b], q[b], c) * gain;
      const int32_t magnitude = magnitude_bits(value);
      largest = std::max(largest, magnitude);
      saturated += magnitude > kInt8LimitBits;
      q[b] = static_cast<int8_t>(round_stochastic(value, halves[b - start]));
    }
  }
  return {saturated, std::bit_cast<float>(largest)};
}

BITFLEET_INLINE QuantiseResult integer_quantise(const int32_t* __restrict sums, int32_t whole, int8_t* __restrict q,
                                                int count, float gain, RandomStream stream, uint32_t first_index) {
  int32_t saturated = 0, largest = 0;
  for (int start = 0; start < count; start += kHalvesAtOnce) {
    const int end = std::min(start + kHalvesAtOnce, count);
    uint16_t room[kHalvesRoom];
    const uint16_t* __restrict halves =
        random_halves(stream, first_index + static_cast<uint32_t>(start), end - start, room);
    for (int k = start; k < end; ++k) {
      const float value = static_cast<float>(whole - 2 * sums[k]) * gain;
      const int32_t magnitude = magnitude_bits(value);
      largest = std::max(largest, magnitude);
      saturated += magnitude > kInt8LimitBits;
      q[k] = static_cast<int8_t>(round_stochastic(value, halves[k - start]));
    }
  }
  return {saturated, std::bit_cast<float>(largest)};
}

BITFLEET_INLINE int32_t integer_max(const int32_t* sums, int32_t whole, int count) {
  int32_t largest = 0;
  for (int k = 0; k < count; ++k) {
    const int32_t value = whole - 2 * sums[k];
    const int32_t magnitude = value < 0 ? -value : value;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

BITFLEET_INLINE void byte_sums(const int8_t* values, size_t stride, int rows, int count, int32_t* sums) {
  for (int r = 0; r < rows; ++r) {
    int32_t sum = 0;
    for (int k = 0; k < count; ++k) sum += values[r * stride + k];
    sums[r] = sum;
  }
}

BITFLEET_INLINE int64_t integer_abs_sum(const int32_t* sums, int32_t factor, int32_t offset, int count) {
  int64_t total = 0;
  for (int k = 0; k < count; ++k) {
    const int32_t value = factor * sums[k] + offset;
    total += value < 0 ? -value : value;
  }
  return total;
}

}  // namespace bitfleet::loops

// Defines the kernels of one instruction set in namespace `isa`; `target` is its function attribute (may be empty).
#define BITFLEET_DEFINE_CHANNEL_KERNELS(isa, target)                                                                   \
  namespace bitfleet::isa {                                                                                            \
  namespace {                                                                                                          \
  template <typename Y>                                                                                                \
  target ChannelStatistics statistics(const Y* y, int count) {                                                         \
    return loops::statistics(y, count);                                                                                \
  }                                                                                                                    \
  template <typename Y>                                                                                                \
  target void emit_signs(const Y* y, size_t stride, const int32_t* from, int rows, int count, uint16_t* bits) {        \
    loops::emit_signs(y, stride, from, rows, count, bits);                                                             \
  }                                                                                                                    \
  template <typename Y>                                                                                                \
  target GradientSums gradient_sums(const Y* y, const int8_t* q, int count, int64_t bound, const ChannelThresholds& t, \
                                    int32_t floor_mean, bool integer) {                                                \
    return loops::gradient_sums(y, q, count, bound, t, floor_mean, integer);                                           \
  }                                                                                                                    \
  template <typename Y>                                                                                                \
  target float gradient_max(const Y* y, const int8_t* q, int count, const GradientCoefficients& c) {                   \
    return loops::gradient_max(y, q, count, c);                                                                        \
  }                                                                                                                    \
  template <typename Y>                                                                                                \
  target QuantiseResult gradient_quantise(const Y* y, int8_t* q, int count, const GradientCoefficients& c, float gain, \
                                          RandomStream s, uint32_t first) {                                            \
    return loops::gradient_quantise(y, q, count, c, gain, s, first);                                                   \
  }                                                                                                                    \
  target QuantiseResult integer_quantise(const int32_t* v, int32_t whole, int8_t* q, int count, float gain,            \
                                         RandomStream s, uint32_t first) {                                             \
    return loops::integer_quantise(v, whole, q, count, gain, s, first);                                                \
  }                                                                                                                    \
  target void moments(const ChannelStatistics* statistics, int count, int rows, ChannelNorms& norms) {                 \
    loops::moments(statistics, count, rows, norms);                                                                    \
  }                                                                                                                    \
  target void thresholds(const float* beta, int rows, ChannelNorms& norms) { loops::thresholds(beta, rows, norms); }   \
  target int32_t integer_max(const int32_t* v, int32_t whole, int count) {                                             \
    return loops::integer_max(v, whole, count);                                                                        \
  }                                                                                                                    \
  target void byte_sums(const int8_t* v, size_t stride, int rows, int count, int32_t* sums) {                          \
    loops::byte_sums(v, stride, rows, count, sums);                                                                    \
  }                                                                                                                    \
  target int64_t integer_abs_sum(const int32_t* v, int32_t factor, int32_t offset, int count) {                        \
    return loops::integer_abs_sum(v, factor, offset, count);                                                           \
  }                                                                                                                    \
  template <typename Y>                                                                                                \
  constexpr ProductKernels<Y> kProductKernels = {statistics<Y>, emit_signs<Y>, gradient_sums<Y>, gradient_max<Y>,      \
                                                 gradient_quantise<Y>};                                                \
  }                                                                                                                    \
  const ChannelKernels channel_kernels = {kProductKernels<int16_t>,                                                    \
                                          kProductKernels<int32_t>,                                                    \
                                          moments,                                                                     \
                                          thresholds,                                                                  \
                                          integer_quantise,                                                            \
                                          integer_max,                                                                 \
                                          byte_sums,                                                                   \
                                          integer_abs_sum};                                                            \
  }
