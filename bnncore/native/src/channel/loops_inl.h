// The loops behind ChannelKernels, written once and compiled once per instruction set.
//
// Every file of this folder includes it and wraps each function in one that carries the target attribute; the bodies
// are always inlined into those, so the compiler vectorises the same source for each set. Element-wise IEEE
// arithmetic without contraction gives the same bits at any vector width; sums are integers; a maximum has no order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "bnncore/channel.h"
#include "bnncore/rounding.h"

#define BITFLEET_INLINE static inline __attribute__((always_inline))

namespace bitfleet::loops {

BITFLEET_INLINE ChannelStatistics statistics(const int32_t* y, int count) {
  int64_t sum = 0;
  for (int b = 0; b < count; ++b) sum += y[b];
  // The deviations B y - S sum to zero, so D is twice the sum of the positive ones.
  const int32_t floor_mean = static_cast<int32_t>(floor_divide(sum, count));
  int64_t sum_above = 0;
  int32_t above = 0;
  for (int b = 0; b < count; ++b) {
    const bool is_above = y[b] > floor_mean;
    sum_above += is_above ? y[b] : 0;
    above += is_above;
  }
  return {sum, 2 * (int64_t{count} * sum_above - int64_t{above} * sum)};
}

BITFLEET_INLINE void emit_signs(const int32_t* y, size_t y_stride, const int32_t* sign_from, int rows, int count,
                                uint16_t* bits) {
  for (int b = 0; b < count; ++b) bits[b] = 0;
  for (int r = 0; r < rows; ++r) {
    const int32_t* row = y + r * y_stride;
    const int32_t from = sign_from[r];
    for (int b = 0; b < count; ++b) bits[b] |= static_cast<uint16_t>((row[b] < from) << r);
  }
}

BITFLEET_INLINE GradientSums gradient_sums(const int32_t* y, const int8_t* q, int count, int64_t y_bound,
                                           const ChannelThresholds t, int32_t floor_mean, bool mean_is_integer) {
  const int64_t fits = INT32_MAX / (127 * std::max<int64_t>(y_bound, 1));
  const int block = static_cast<int>(std::clamp<int64_t>(fits, 1, 1 << 15));
  GradientSums sums{};
  for (int start = 0; start < count; start += block) {
    const int end = std::min(count, start + block);
    int32_t sum_q = 0, sum_qy = 0, above = 0, at = 0;
    for (int b = start; b < end; ++b) {
      const int32_t passes = -static_cast<int32_t>((y[b] >= t.mask_from) & (y[b] <= t.mask_to));  // 0 or all ones
      const int32_t masked = q[b] & passes;
      sum_q += masked;
      sum_qy += masked * y[b];
      above += y[b] > floor_mean;
      at += y[b] == floor_mean;
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

BITFLEET_INLINE float gradient_max(const int32_t* y, const int8_t* q, int count, const GradientCoefficients& c) {
  int32_t largest = 0;
  for (int b = 0; b < count; ++b) largest = std::max(largest, magnitude_bits(centred(y[b], q[b], c)));
  return std::bit_cast<float>(largest);
}

// The coefficients come by value and the arrays are restrict: an int8_t store may alias anything otherwise.
BITFLEET_INLINE QuantiseResult gradient_quantise(const int32_t* __restrict y, int8_t* __restrict q, int count,
                                                 const GradientCoefficients c, float gain, RandomStream stream,
                                                 uint32_t first_index, uint32_t index_stride) {
  int32_t saturated = 0, largest = 0;
  for (int b = 0; b < count; ++b) {
    const float value = centred(y[b], q[b], c) * gain;
    const int32_t magnitude = magnitude_bits(value);
    largest = std::max(largest, magnitude);
    saturated += magnitude > kInt8LimitBits;
    const uint32_t word = random_word(stream, first_index + static_cast<uint32_t>(b) * index_stride);
    q[b] = static_cast<int8_t>(round_stochastic(value, word >> 16));
  }
  return {saturated, std::bit_cast<float>(largest)};
}

BITFLEET_INLINE QuantiseResult integer_quantise(const int32_t* __restrict values, int8_t* __restrict q, int count,
                                                float gain, RandomStream stream, uint32_t first_index) {
  int32_t saturated = 0, largest = 0;
  for (int k = 0; k < count; ++k) {
    const float value = static_cast<float>(values[k]) * gain;
    const int32_t magnitude = magnitude_bits(value);
    largest = std::max(largest, magnitude);
    saturated += magnitude > kInt8LimitBits;
    const uint32_t word = random_word(stream, first_index + static_cast<uint32_t>(k));
    q[k] = static_cast<int8_t>(round_stochastic(value, word >> 16));
  }
  return {saturated, std::bit_cast<float>(largest)};
}

BITFLEET_INLINE int32_t integer_max(const int32_t* values, int count) {
  int32_t largest = 0;
  for (int k = 0; k < count; ++k) {
    const int32_t magnitude = values[k] < 0 ? -values[k] : values[k];
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

BITFLEET_INLINE int64_t integer_abs_sum(const int32_t* values, int count) {
  int64_t sum = 0;
  for (int k = 0; k < count; ++k) sum += values[k] < 0 ? -values[k] : values[k];
  return sum;
}

}  // namespace bitfleet::loops

// Defines the kernels of one instruction set in namespace `isa`; `target` is its function attribute (may be empty).
#define BITFLEET_DEFINE_CHANNEL_KERNELS(isa, target)                                                                  \
  namespace bitfleet::isa {                                                                                           \
  namespace {                                                                                                         \
  target ChannelStatistics statistics(const int32_t* y, int count) { return loops::statistics(y, count); }            \
  target void emit_signs(const int32_t* y, size_t stride, const int32_t* from, int rows, int count, uint16_t* bits) { \
    loops::emit_signs(y, stride, from, rows, count, bits);                                                            \
  }                                                                                                                   \
  target GradientSums gradient_sums(const int32_t* y, const int8_t* q, int count, int64_t bound,                      \
                                    const ChannelThresholds& t, int32_t floor_mean, bool integer) {                   \
    return loops::gradient_sums(y, q, count, bound, t, floor_mean, integer);                                          \
  }                                                                                                                   \
  target float gradient_max(const int32_t* y, const int8_t* q, int count, const GradientCoefficients& c) {            \
    return loops::gradient_max(y, q, count, c);                                                                       \
  }                                                                                                                   \
  target QuantiseResult gradient_quantise(const int32_t* y, int8_t* q, int count, const GradientCoefficients& c,      \
                                          float gain, RandomStream s, uint32_t first, uint32_t stride) {              \
    return loops::gradient_quantise(y, q, count, c, gain, s, first, stride);                                          \
  }                                                                                                                   \
  target QuantiseResult integer_quantise(const int32_t* v, int8_t* q, int count, float gain, RandomStream s,          \
                                         uint32_t first) {                                                            \
    return loops::integer_quantise(v, q, count, gain, s, first);                                                      \
  }                                                                                                                   \
  target int32_t integer_max(const int32_t* v, int count) { return loops::integer_max(v, count); }                    \
  target int64_t integer_abs_sum(const int32_t* v, int count) { return loops::integer_abs_sum(v, count); }            \
  }                                                                                                                   \
  const ChannelKernels channel_kernels = {statistics,        emit_signs,       gradient_sums, gradient_max,           \
                                          gradient_quantise, integer_quantise, integer_max,   integer_abs_sum};       \
  }
