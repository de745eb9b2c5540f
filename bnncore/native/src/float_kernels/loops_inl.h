// The loops behind FloatKernels, written once and compiled once per instruction set (see channel/loops_inl.h).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "bnncore/float16.h"
#include "bnncore/float_kernels.h"

#define BITFLEET_INLINE static inline __attribute__((always_inline))

namespace bitfleet::float_loops {

// +1 or -1 by one bit.
BITFLEET_INLINE float sign_of(uint32_t negative) { return std::bit_cast<float>(0x3f800000u | negative << 31); }

BITFLEET_INLINE float clip(float value) {
  value = value < -1.0f ? -1.0f : value;
  return value > 1.0f ? 1.0f : value;
}

BITFLEET_INLINE void signs(const float* __restrict x, int count, float* __restrict out) {
  for (int i = 0; i < count; ++i) out[i] = x[i] < 0.0f ? -1.0f : 1.0f;
}

BITFLEET_INLINE void centre_bytes(const uint8_t* __restrict u, int count, float scale, float* __restrict out) {
  for (int i = 0; i < count; ++i) out[i] = static_cast<float>(2 * static_cast<int32_t>(u[i]) - 255) * scale;
}

BITFLEET_INLINE void add_rows(const float* __restrict y, size_t stride, int rows, int channels,
                              double* __restrict sums) {
  for (int r = 0; r < rows; ++r, y += stride) {
    for (int c = 0; c < channels; ++c) sums[c] += static_cast<double>(y[c]);
  }
}

BITFLEET_INLINE void add_squares(const float* __restrict y, size_t stride, int rows, int channels,
                                 const double* __restrict mean, double* __restrict sums) {
  for (int r = 0; r < rows; ++r, y += stride) {
    for (int c = 0; c < channels; ++c) {
      const double difference = static_cast<double>(y[c]) - mean[c];
      sums[c] += difference * difference;
    }
  }
}

BITFLEET_INLINE void add_deviations(const float* __restrict y, size_t stride, int rows, int channels,
                                    const double* __restrict mean, double* __restrict sums) {
  for (int r = 0; r < rows; ++r, y += stride) {
    for (int c = 0; c < channels; ++c) sums[c] += std::fabs(static_cast<double>(y[c]) - mean[c]);
  }
}

BITFLEET_INLINE void normalise(const float* y, int rows, int channels, const float* __restrict mean,
                               const float* __restrict inverse, const float* __restrict beta, float* x) {
  const size_t stride = static_cast<size_t>(channels);
  for (int r = 0; r < rows; ++r, y += stride, x += stride) {
#pragma GCC ivdep
    for (int c = 0; c < channels; ++c) x[c] = (y[c] - mean[c]) * inverse[c] + beta[c];
  }
}

BITFLEET_INLINE float pass(float g, float x, bool masked) { return masked && !(std::fabs(x) <= 1.0f) ? 0.0f : g; }

BITFLEET_INLINE void gradient_sums(const float* __restrict g, const float* __restrict x, size_t stride, int rows,
                                   int channels, const float* __restrict beta, bool masked, double* __restrict sum_g,
                                   double* __restrict sum_gx) {
  for (int r = 0; r < rows; ++r, g += stride, x += stride) {
    for (int c = 0; c < channels; ++c) {
      const float passed = pass(g[c], x[c], masked);
      sum_g[c] += static_cast<double>(passed);
      sum_gx[c] += static_cast<double>(passed) * static_cast<double>(x[c] - beta[c]);
    }
  }
}

BITFLEET_INLINE void gradient(const float* g, const float* __restrict x, int rows, int channels,
                              const float* __restrict beta, bool masked, const NormGradient& norm, float* dy) {
  const float* __restrict inverse = norm.inverse;
  const float* __restrict mean_v = norm.mean_v;
  const float* __restrict mean_vx = norm.mean_vx;
  const size_t stride = static_cast<size_t>(channels);
  for (int r = 0; r < rows; ++r, g += stride, x += stride, dy += stride) {
#pragma GCC ivdep
    for (int c = 0; c < channels; ++c) {
      const float v = pass(g[c], x[c], masked) * inverse[c];
      dy[c] = (v - mean_v[c]) - (x[c] - beta[c]) * mean_vx[c];
    }
  }
}

BITFLEET_INLINE float adam_moved(float value, float& mean, float& square, float g, const AdamStep& s) {
  mean = s.beta1 * mean + (1.0f - s.beta1) * g;
  square = s.beta2 * square + (1.0f - s.beta2) * (g * g);
  return clip(value - s.step * mean / (std::sqrt(square * s.inverse_correction) + s.epsilon));
}

BITFLEET_INLINE void adam(float* __restrict weights, float* __restrict mean, float* __restrict square,
                          const float* __restrict grad, size_t count, const AdamStep s) {
  for (size_t k = 0; k < count; ++k) {
    float first = mean[k], second = square[k];
    weights[k] = adam_moved(weights[k], first, second, grad[k], s);
    mean[k] = first;
    square[k] = second;
  }
}

BITFLEET_INLINE void sgd(float* __restrict weights, float* __restrict momentum, const float* __restrict grad,
                         size_t count, float unit, const SgdStep s) {
  for (size_t k = 0; k < count; ++k) {
    momentum[k] = s.momentum * momentum[k] + grad[k] * unit;
    weights[k] = clip(weights[k] - s.step * momentum[k]);
  }
}

BITFLEET_INLINE void half_signs(const uint16_t* __restrict halves, int count, float* __restrict out) {
  for (int i = 0; i < count; ++i) out[i] = sign_of(halves[i] > 0x8000u ? 1u : 0u);
}

BITFLEET_INLINE void bit_gradient_sums(const float* __restrict g, int rows, int channels,
                                       const uint64_t* __restrict negative, const uint64_t* __restrict outside,
                                       double* __restrict sum_g, double* __restrict sum_gs) {
  for (int r = 0; r < rows; ++r, g += channels) {
    for (int start = 0; start < channels; start += 32) {
      const uint32_t signs = static_cast<uint32_t>(negative[r] >> start);
      const uint32_t blocked = static_cast<uint32_t>(outside[r] >> start);
      const int some = channels - start < 32 ? channels - start : 32;
      for (int i = 0; i < some; ++i) {
        const float passed = (blocked >> i & 1u) != 0 ? 0.0f : g[start + i];
        sum_g[start + i] += static_cast<double>(passed);
        sum_gs[start + i] += static_cast<double>(passed * sign_of(signs >> i & 1u));
      }
    }
  }
}

BITFLEET_INLINE void bit_gradient(const float* __restrict g, int rows, int channels,
                                  const uint64_t* __restrict negative, const uint64_t* __restrict outside,
                                  const NormGradient& norm, float* __restrict dy) {
  const float* __restrict inverse = norm.inverse;
  const float* __restrict mean_v = norm.mean_v;
  const float* __restrict mean_vx = norm.mean_vx;
  for (int r = 0; r < rows; ++r, g += channels, dy += channels) {
    for (int start = 0; start < channels; start += 32) {
      const uint32_t signs = static_cast<uint32_t>(negative[r] >> start);
      const uint32_t blocked = static_cast<uint32_t>(outside[r] >> start);
      const int end = channels < start + 32 ? channels : start + 32;
      for (int c = start; c < end; ++c) {
        const uint32_t i = static_cast<uint32_t>(c - start);
        const float v = ((blocked >> i & 1u) != 0 ? 0.0f : g[c]) * inverse[c];
        dy[c] = (v - mean_v[c]) - sign_of(signs >> i & 1u) * mean_vx[c];
      }
    }
  }
}

BITFLEET_INLINE void expand_bits(const uint64_t* __restrict words, int first, int count, float* __restrict out) {
  int i = 0;
  while (i < count) {
    const int bit = (first + i) % 64;
    const uint64_t rest = words[(first + i) / 64] >> bit;
    const int whole = count - i < 64 - bit ? count - i : 64 - bit;
    for (int part = 0; part < whole; part += 32) {
      const uint32_t bits = static_cast<uint32_t>(rest >> part);
      const int some = whole - part < 32 ? whole - part : 32;
      float* target = out + i + part;
      for (int k = 0; k < some; ++k) target[k] = sign_of(bits >> k & 1u);
    }
    i += whole;
  }
}

// Three 13-bit numbers of one word; the last shares bits with the first two after a multiplication.
BITFLEET_INLINE uint32_t third_random(uint32_t word) { return word * 0x9e3779b1u >> 19; }

inline constexpr int kHalfRun = 256;  // weights whose state is widened at once

using Widen = void (*)(const uint16_t* halves, int count, float* out);

BITFLEET_INLINE void half_adam(uint16_t* __restrict weights, uint16_t* __restrict mean, uint16_t* __restrict square,
                               const uint64_t* __restrict negative, int count, float size, const AdamStep s,
                               RandomStream stream, uint32_t first_index, Widen widen) {
  for (int start = 0; start < count; start += kHalfRun) {
    const int some = count - start < kHalfRun ? count - start : kHalfRun;
    float grad[kHalfRun], value[kHalfRun], first[kHalfRun], second[kHalfRun];
    expand_bits(negative, start, some, grad);
    widen(weights + start, some, value);
    widen(mean + start, some, first);
    widen(square + start, some, second);
    for (int i = 0; i < some; ++i) {
      float moved = first[i], spread = second[i];
      value[i] = adam_moved(value[i], moved, spread, grad[i] * size, s);
      first[i] = moved;
      second[i] = spread;
    }
    const uint32_t index = first_index + static_cast<uint32_t>(start);
    for (int i = 0; i < some; ++i) {
      const uint32_t word = random_word(stream, index + static_cast<uint32_t>(i));
      weights[start + i] = to_half_stochastic(value[i], word & 0x1fffu);
      mean[start + i] = to_half_stochastic(first[i], word >> 13 & 0x1fffu);
      square[start + i] = to_half_stochastic(second[i], third_random(word));
    }
  }
}

BITFLEET_INLINE void half_sgd(uint16_t* __restrict weights, uint16_t* __restrict momentum,
                              const uint64_t* __restrict negative, int count, float size, const SgdStep s,
                              RandomStream stream, uint32_t first_index, Widen widen) {
  for (int start = 0; start < count; start += kHalfRun) {
    const int some = count - start < kHalfRun ? count - start : kHalfRun;
    float grad[kHalfRun], value[kHalfRun], moved[kHalfRun];
    expand_bits(negative, start, some, grad);
    widen(weights + start, some, value);
    widen(momentum + start, some, moved);
    for (int i = 0; i < some; ++i) {
      moved[i] = s.momentum * moved[i] + grad[i] * size;
      value[i] = clip(value[i] - s.step * moved[i]);
    }
    const uint32_t index = first_index + static_cast<uint32_t>(start);
    for (int i = 0; i < some; ++i) {
      const uint32_t word = random_word(stream, index + static_cast<uint32_t>(i));
      weights[start + i] = to_half_stochastic(value[i], word & 0x1fffu);
      momentum[start + i] = to_half_stochastic(moved[i], word >> 13 & 0x1fffu);
    }
  }
}

}  // namespace bitfleet::float_loops

#define BITFLEET_DEFINE_FLOAT_KERNELS(isa_name, target)                                                               \
  namespace bitfleet::isa_name {                                                                                      \
  namespace {                                                                                                         \
  target void signs(const float* x, int n, float* out) { float_loops::signs(x, n, out); }                             \
  target void centre_bytes(const uint8_t* u, int n, float scale, float* out) {                                        \
    float_loops::centre_bytes(u, n, scale, out);                                                                      \
  }                                                                                                                   \
  target void add_rows(const float* y, size_t stride, int rows, int channels, double* sums) {                         \
    float_loops::add_rows(y, stride, rows, channels, sums);                                                           \
  }                                                                                                                   \
  target void add_squares(const float* y, size_t stride, int rows, int channels, const double* mean, double* sums) {  \
    float_loops::add_squares(y, stride, rows, channels, mean, sums);                                                  \
  }                                                                                                                   \
  target void add_deviations(const float* y, size_t stride, int rows, int channels, const double* mean,               \
                             double* sums) {                                                                          \
    float_loops::add_deviations(y, stride, rows, channels, mean, sums);                                               \
  }                                                                                                                   \
  target void bit_gradient_sums(const float* g, int rows, int channels, const uint64_t* negative,                     \
                                const uint64_t* outside, double* sum_g, double* sum_gs) {                             \
    float_loops::bit_gradient_sums(g, rows, channels, negative, outside, sum_g, sum_gs);                              \
  }                                                                                                                   \
  target void bit_gradient(const float* g, int rows, int channels, const uint64_t* negative, const uint64_t* outside, \
                           const NormGradient& norm, float* dy) {                                                     \
    float_loops::bit_gradient(g, rows, channels, negative, outside, norm, dy);                                        \
  }                                                                                                                   \
  target void normalise(const float* y, int rows, int channels, const float* mean, const float* inverse,              \
                        const float* beta, float* x) {                                                                \
    float_loops::normalise(y, rows, channels, mean, inverse, beta, x);                                                \
  }                                                                                                                   \
  target void gradient_sums(const float* g, const float* x, size_t stride, int rows, int channels, const float* beta, \
                            bool masked, double* sum_g, double* sum_gx) {                                             \
    float_loops::gradient_sums(g, x, stride, rows, channels, beta, masked, sum_g, sum_gx);                            \
  }                                                                                                                   \
  target void gradient(const float* g, const float* x, int rows, int channels, const float* beta, bool masked,        \
                       const NormGradient& norm, float* dy) {                                                         \
    float_loops::gradient(g, x, rows, channels, beta, masked, norm, dy);                                              \
  }                                                                                                                   \
  target void adam(float* w, float* m, float* v, const float* g, size_t n, const AdamStep& s) {                       \
    float_loops::adam(w, m, v, g, n, s);                                                                              \
  }                                                                                                                   \
  target void sgd(float* w, float* m, const float* g, size_t n, float unit, const SgdStep& s) {                       \
    float_loops::sgd(w, m, g, n, unit, s);                                                                            \
  }                                                                                                                   \
  target void half_signs(const uint16_t* h, int n, float* out) { float_loops::half_signs(h, n, out); }                \
  target void expand_bits(const uint64_t* words, int first, int n, float* out) {                                      \
    float_loops::expand_bits(words, first, n, out);                                                                   \
  }                                                                                                                   \
  target void half_adam(uint16_t* w, uint16_t* m, uint16_t* v, const uint64_t* negative, int n, float size,           \
                        const AdamStep& s, RandomStream stream, uint32_t first) {                                     \
    float_loops::half_adam(w, m, v, negative, n, size, s, stream, first, widen);                                      \
  }                                                                                                                   \
  target void half_sgd(uint16_t* w, uint16_t* m, const uint64_t* negative, int n, float size, const SgdStep& s,       \
                       RandomStream stream, uint32_t first) {                                                         \
    float_loops::half_sgd(w, m, negative, n, size, s, stream, first, widen);                                          \
  }                                                                                                                   \
  }                                                                                                                   \
  const FloatKernels float_kernels = {sgemm,                                                                          \
                                      transpose_floats,                                                               \
                                      signs,                                                                          \
                                      centre_bytes,                                                                   \
                                      add_rows,                                                                       \
                                      add_squares,                                                                    \
                                      add_deviations,                                                                 \
                                      normalise,                                                                      \
                                      gradient_sums,                                                                  \
                                      gradient,                                                                       \
                                      adam,                                                                           \
                                      sgd,                                                                            \
                                      widen,                                                                          \
                                      narrow,                                                                         \
                                      half_signs,                                                                     \
                                      pack_norm,                                                                      \
                                      bit_gradient_sums,                                                              \
                                      bit_gradient,                                                                   \
                                      expand_bits,                                                                    \
                                      half_adam,                                                                      \
                                      half_sgd};                                                                      \
  }
