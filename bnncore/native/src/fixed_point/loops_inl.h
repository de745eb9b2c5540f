// The loops behind FixedPointKernels, written once and compiled once per instruction set; see channel/loops_inl.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "../halves_inl.h"
#include "bnncore/fixed_point.h"
#include "bnncore/rounding.h"

#define BITFLEET_INLINE static inline __attribute__((always_inline))

namespace bitfleet::loops {

// Vectors of the compiler's own, of as many sums as a register of the instruction set holds: of wider ones it makes
// copies through memory.
template <int kLanes>
struct Vectors {
  typedef int16_t Shorts __attribute__((vector_size(sizeof(int16_t) * kLanes)));
  typedef int32_t Ints __attribute__((vector_size(sizeof(int32_t) * kLanes)));
};

template <int kLanes>
BITFLEET_INLINE void add_product(typename Vectors<kLanes>::Ints& sum, const int16_t* x, int32_t weight) {
  typename Vectors<kLanes>::Shorts values;
  std::memcpy(&values, x, sizeof(values));
  sum += __builtin_convertvector(values, typename Vectors<kLanes>::Ints) * weight;
}

template <int kLanes>
BITFLEET_INLINE void multiply(const int16_t* x, const int32_t* offsets, const int16_t* weights, int terms, int count,
                              int32_t* out) {
  using Ints = typename Vectors<kLanes>::Ints;
  int i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    Ints a{}, b{}, c{}, d{};
    for (int t = 0; t < terms; ++t) {
      const int16_t* source = x + offsets[t] + i;
      const int32_t weight = weights[t];
      add_product<kLanes>(a, source, weight);
      add_product<kLanes>(b, source + kLanes, weight);
      add_product<kLanes>(c, source + 2 * kLanes, weight);
      add_product<kLanes>(d, source + 3 * kLanes, weight);
    }
    std::memcpy(out + i, &a, sizeof(a));
    std::memcpy(out + i + kLanes, &b, sizeof(b));
    std::memcpy(out + i + 2 * kLanes, &c, sizeof(c));
    std::memcpy(out + i + 3 * kLanes, &d, sizeof(d));
  }
  for (; i + kLanes <= count; i += kLanes) {
    Ints a{};
    for (int t = 0; t < terms; ++t) add_product<kLanes>(a, x + offsets[t] + i, weights[t]);
    std::memcpy(out + i, &a, sizeof(a));
  }
  for (; i < count; ++i) {
    int32_t sum = 0;
    for (int t = 0; t < terms; ++t) sum += int32_t{weights[t]} * x[offsets[t] + i];
    out[i] = sum;
  }
}

BITFLEET_INLINE void dot(const int16_t* x, const int32_t* offsets, int terms, const int16_t* grad, int count,
                         int64_t* sums) {
  for (int t = 0; t < terms; ++t) {
    const int16_t* source = x + offsets[t];
    int32_t sum = 0;
    for (int i = 0; i < count; ++i) sum += int32_t{grad[i]} * source[i];
    sums[t] += sum;
  }
}

// To the nearest integer, halves to even, for |value| < 2^22: without a call of the library where there is no
// instruction for it.
BITFLEET_INLINE int32_t round_to_even(float value) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  return static_cast<int32_t>((value + kRounder) - kRounder);
}

template <typename Y, typename Store>
BITFLEET_INLINE int64_t normalise(const Y* __restrict y, int count, const Scaling s, int16_t* __restrict out,
                                  Store store) {
  int32_t saturated = 0;
  for (int i = 0; i < count; ++i) {
    const float value = static_cast<float>(y[i]) * s.gain + s.offset;
    saturated += (value > s.high) | (value < s.least);
    float kept = value < s.low ? s.low : value;
    kept = kept > s.high ? s.high : kept;
    out[i] = store(out[i], static_cast<int16_t>(round_to_even(kept)));
  }
  return saturated;
}

BITFLEET_INLINE QuantiseResult stream_gradient(const int32_t* __restrict way, const int32_t* __restrict branch,
                                               const int16_t* __restrict s, int count, const StreamGains gains,
                                               RandomStream random, uint32_t first_index, int8_t* __restrict q) {
  constexpr int32_t kLimitBits = std::bit_cast<int32_t>(kInt8Limit);
  int32_t saturated = 0, largest = 0;
  for (int start = 0; start < count; start += kHalvesAtOnce) {
    const int end = std::min(start + kHalvesAtOnce, count);
    uint16_t room[kHalvesRoom];
    const uint16_t* __restrict halves =
        random_halves(random, first_index + static_cast<uint32_t>(start), end - start, room);
    for (int k = start; k < end; ++k) {
      const int32_t magnitude_of_s = s[k] < 0 ? -int32_t{s[k]} : int32_t{s[k]};
      const int32_t left = kStreamUnits - magnitude_of_s;
      const float approx = static_cast<float>(left > 0 ? left : 0) * (2.0f / kStreamUnits);
      const float clip = left >= 0 ? 1.0f : 0.0f;
      const float slope = gains.approx ? approx : clip;
      const float value = static_cast<float>(way[k]) * gains.way + static_cast<float>(branch[k]) * gains.branch * slope;
      const int32_t magnitude = std::bit_cast<int32_t>(value) & 0x7fffffff;
      largest = std::max(largest, magnitude);
      saturated += magnitude > kLimitBits;
      q[k] = static_cast<int8_t>(round_stochastic(value, halves[k - start]));
    }
  }
  return {saturated, std::bit_cast<float>(largest)};
}

}  // namespace bitfleet::loops

// Defines the kernels of one instruction set in namespace `isa`, whose registers hold `lanes` int32; `target` is its
// function attribute (may be empty).
#define BITFLEET_DEFINE_FIXED_POINT_KERNELS(isa, lanes, target)                                                     \
  namespace bitfleet::isa {                                                                                         \
  namespace {                                                                                                       \
  target void multiply(const int16_t* x, const int32_t* offsets, const int16_t* weights, int terms, int count,      \
                       int32_t* out) {                                                                              \
    loops::multiply<lanes>(x, offsets, weights, terms, count, out);                                                 \
  }                                                                                                                 \
  target void dot(const int16_t* x, const int32_t* offsets, int terms, const int16_t* grad, int count,              \
                  int64_t* sums) {                                                                                  \
    loops::dot(x, offsets, terms, grad, count, sums);                                                               \
  }                                                                                                                 \
  target int64_t normalise_narrow(const int16_t* y, int count, const Scaling& s, int16_t* out) {                    \
    return loops::normalise(y, count, s, out, [](int16_t, int16_t value) { return value; });                        \
  }                                                                                                                 \
  target int64_t normalise_wide(const int32_t* y, int count, const Scaling& s, int16_t* out) {                      \
    return loops::normalise(y, count, s, out, [](int16_t, int16_t value) { return value; });                        \
  }                                                                                                                 \
  target int64_t add(const int16_t* y, int count, const Scaling& s, int16_t* stream) {                              \
    return loops::normalise(y, count, s, stream,                                                                    \
                            [](int16_t old, int16_t value) { return static_cast<int16_t>(old + value); });          \
  }                                                                                                                 \
  target void subtract(const int16_t* y, int count, const Scaling& s, int16_t* stream) {                            \
    loops::normalise(y, count, s, stream,                                                                           \
                     [](int16_t old, int16_t value) { return static_cast<int16_t>(old - value); });                 \
  }                                                                                                                 \
  target QuantiseResult stream_gradient(const int32_t* way, const int32_t* branch, const int16_t* s, int count,     \
                                        const StreamGains& gains, RandomStream random, uint32_t first, int8_t* q) { \
    return loops::stream_gradient(way, branch, s, count, gains, random, first, q);                                  \
  }                                                                                                                 \
  }                                                                                                                 \
  const FixedPointKernels fixed_point_kernels = {multiply, dot,      normalise_narrow, normalise_wide,              \
                                                 add,      subtract, stream_gradient};                              \
  }
