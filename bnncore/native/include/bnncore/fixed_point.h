// Real numbers as integers, for residual networks: exact sums in any order, and a stream that can be taken back.
//
// The stream to which residual units add is int16 in units of 1/512. What a unit adds, 512 ((y - mean) / psi + beta),
// is rounded once and kept within a limit, so that sums cannot overflow; the backward pass computes the same integers
// again and takes them off.
//
// Real-valued convolutions multiply 16-bit integers by weights in 14 bits and a sign.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/channel.h"

namespace bitfleet {

inline constexpr int kStreamBits = 9;
inline constexpr int kStreamUnits = 1 << kStreamBits;
inline constexpr int kStreamMax = 32767;
inline constexpr int kDotCount = 512;  // 512 * 127 * 32767 fits an int32

// The weights of a real-valued convolution: times 2^exponent, rounded to even; sums of products lose `shift` low bits.
struct FixedPoint {
  int exponent;
  int shift;
};

// Rounds weights [rows][depth] into `integers`, so that `most` times the largest of them stays below 2^31, and any sum
// of products with inputs of up to `largest_input` fits `bits` bits and a sign after the shift.
FixedPoint to_fixed_point(const float* weights, int rows, int depth, int64_t largest_input, int64_t most, int bits,
                          int16_t* integers);

// round(clamp(y * gain + offset, low, high)); values above high, or below `least`, count as saturated.
struct Scaling {
  float gain;
  float offset;
  float low;
  float high;
  float least;
};

Scaling stream_scaling(const ChannelMoments& moments, float beta, int limit);

// What becomes of a stream's gradient below a unit: way * way_gain + (branch * branch_gain) * slope of the sign at s.
struct StreamGains {
  float way;
  float branch;
  bool approx;  // slope 2 - 2 |x| where |x| < 1; else 1 where |x| <= 1
};

struct FixedPointKernels {
  // out[i] = sum over t < terms of weights[t] * x[offsets[t] + i]; no sum may overflow.
  void (*multiply)(const int16_t* x, const int32_t* offsets, const int16_t* weights, int terms, int count,
                   int32_t* out);
  // sums[t] += sum over i < count <= kDotCount of grad[i] * x[offsets[t] + i], for |grad| <= 127.
  void (*dot)(const int16_t* x, const int32_t* offsets, int terms, const int16_t* grad, int count, int64_t* sums);
  // Each gives how many values were saturated.
  int64_t (*normalise_narrow)(const int16_t* y, int count, const Scaling& scaling, int16_t* out);
  int64_t (*normalise_wide)(const int32_t* y, int count, const Scaling& scaling, int16_t* out);
  int64_t (*add)(const int16_t* y, int count, const Scaling& scaling, int16_t* stream);
  void (*subtract)(const int16_t* y, int count, const Scaling& scaling, int16_t* stream);
  // q[k] = round_stochastic(the gradient of element k), which draws random_half(first_index + k).
  QuantiseResult (*stream_gradient)(const int32_t* way, const int32_t* branch, const int16_t* s, int count,
                                    const StreamGains& gains, RandomStream random, uint32_t first_index, int8_t* q);
};

namespace portable {
extern const FixedPointKernels fixed_point_kernels;
}
namespace avx2 {
extern const FixedPointKernels fixed_point_kernels;
}
namespace avx512 {
extern const FixedPointKernels fixed_point_kernels;
}

}  // namespace bitfleet
