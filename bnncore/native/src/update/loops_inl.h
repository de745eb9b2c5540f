// The loops behind UpdateKernels, written once and compiled once per instruction set (see channel/loops_inl.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../halves_inl.h"
#include "bnncore/rounding.h"
#include "bnncore/update.h"

#define BITFLEET_INLINE static inline __attribute__((always_inline))

// As locals: a store through latent weights may alias what a struct's member points to.
#define BITFLEET_READ_GRADIENT(grad)                \
  const int32_t* __restrict const sums = grad.sums; \
  const int32_t unit = grad.factor, offset = grad.offset

namespace bitfleet::loops {

BITFLEET_INLINE void latent8_run(int8_t* __restrict latent, const IntegerGradient grad, int count, float factor,
                                 RandomStream stream, uint32_t first_index) {
  BITFLEET_READ_GRADIENT(grad);
  for (int start = 0; start < count; start += kHalvesAtOnce) {
    const int end = std::min(start + kHalvesAtOnce, count);
    uint16_t room[kHalvesRoom];
    const uint16_t* __restrict halves =
        random_halves(stream, first_index + static_cast<uint32_t>(start), end - start, room);
    for (int k = start; k < end; ++k) {
      const float next = static_cast<float>(latent[k]) - static_cast<float>(unit * sums[k] + offset) * factor;
      latent[k] = static_cast<int8_t>(round_stochastic(next, halves[k - start]));
    }
  }
}

BITFLEET_INLINE void latent8(int8_t* latent, const WeightRuns& runs, const IntegerGradients& grads, float gain,
                             const Latent8Step s, RandomStream stream) {
  for (int r = 0; r < runs.runs; ++r) {
    latent8_run(latent + runs.begin(r), grads.run(r), runs.count, gain * s.step, stream, runs.index(r));
  }
}

BITFLEET_INLINE void latent8_momentum(int8_t* __restrict latent, int8_t* __restrict momentum,
                                      const IntegerGradient grad, int count, float gain, const Latent8MomentumStep s,
                                      RandomStream stream, uint32_t first_index) {
  BITFLEET_READ_GRADIENT(grad);
  const float factor = gain * s.inflow;
  for (int k = 0; k < count; ++k) {
    const uint32_t word = random_word(stream, first_index + static_cast<uint32_t>(k));
    const float moved =
        static_cast<float>(momentum[k]) * s.decay + static_cast<float>(unit * sums[k] + offset) * factor;
    const int32_t rounded = round_stochastic(moved, word & 0xffffu);
    momentum[k] = static_cast<int8_t>(rounded);
    const float next = static_cast<float>(latent[k]) - static_cast<float>(rounded) * s.step;
    latent[k] = static_cast<int8_t>(round_stochastic(next, word >> 16));
  }
}

BITFLEET_INLINE uint32_t bop(uint32_t signs, int8_t* __restrict average, const IntegerGradient grad, int count,
                             float gain, const BopStep s, RandomStream stream, uint32_t first_index) {
  BITFLEET_READ_GRADIENT(grad);
  const float factor = gain * s.inflow;
  uint32_t flips = 0;
  uint16_t room[kHalvesRoom];
  const uint16_t* __restrict halves = random_halves(stream, first_index, count, room);
  for (int k = 0; k < count; ++k) {
    const float moved = static_cast<float>(average[k]) * s.keep + static_cast<float>(unit * sums[k] + offset) * factor;
    const int32_t rounded = round_stochastic(moved, halves[k]);
    average[k] = static_cast<int8_t>(rounded);
    const uint32_t negative = signs >> k & 1u;
    // A positive gradient asks for a smaller weight: flip a weight whose sign the average shares.
    const float along = negative ? -static_cast<float>(rounded) : static_cast<float>(rounded);
    flips |= static_cast<uint32_t>(along > s.threshold) << k;
  }
  return flips;
}

BITFLEET_INLINE void adam_one(float& value, float& mean, float& square, float g, const AdamStep& s) {
  mean = s.beta1 * mean + (1.0f - s.beta1) * g;
  square = s.beta2 * square + (1.0f - s.beta2) * (g * g);
  value = value - s.step * mean / (std::sqrt(square * s.inverse_correction) + s.epsilon);
}

BITFLEET_INLINE void adam(float* __restrict latent, float* __restrict mean, float* __restrict square,
                          const IntegerGradient grad, int count, float gain, const AdamStep s) {
  BITFLEET_READ_GRADIENT(grad);
  for (int k = 0; k < count; ++k) {
    float value = latent[k], first = mean[k], second = square[k];
    adam_one(value, first, second, static_cast<float>(unit * sums[k] + offset) * gain, s);
    mean[k] = first;
    square[k] = second;
    value = value < -1.0f ? -1.0f : value;
    latent[k] = value > 1.0f ? 1.0f : value;
  }
}

BITFLEET_INLINE void sgd(float* __restrict latent, float* __restrict momentum, const IntegerGradient grad, int count,
                         float gain, const SgdStep s) {
  BITFLEET_READ_GRADIENT(grad);
  for (int k = 0; k < count; ++k) {
    const float moved = s.momentum * momentum[k] + static_cast<float>(unit * sums[k] + offset) * gain;
    momentum[k] = moved;
    float value = latent[k] - s.step * moved;
    value = value < -1.0f ? -1.0f : value;
    latent[k] = value > 1.0f ? 1.0f : value;
  }
}

}  // namespace bitfleet::loops

#define BITFLEET_DEFINE_UPDATE_KERNELS(isa, target) BITFLEET_DEFINE_UPDATE_KERNELS_WITH(isa, target, loops::latent8)

// The same with another latent8.
#define BITFLEET_DEFINE_UPDATE_KERNELS_WITH(isa, target, latent8_loop)                                                 \
  namespace bitfleet::isa {                                                                                            \
  namespace {                                                                                                          \
  target void latent8(int8_t* u, const WeightRuns& runs, const IntegerGradients& g, float gain, const Latent8Step& s,  \
                      RandomStream stream) {                                                                           \
    latent8_loop(u, runs, g, gain, s, stream);                                                                         \
  }                                                                                                                    \
  target void latent8_momentum(int8_t* u, int8_t* m, const IntegerGradient& g, int count, float gain,                  \
                               const Latent8MomentumStep& s, RandomStream stream, uint32_t first) {                    \
    loops::latent8_momentum(u, m, g, count, gain, s, stream, first);                                                   \
  }                                                                                                                    \
  target uint32_t bop(uint32_t signs, int8_t* m, const IntegerGradient& g, int count, float gain, const BopStep& s,    \
                      RandomStream stream, uint32_t first) {                                                           \
    return loops::bop(signs, m, g, count, gain, s, stream, first);                                                     \
  }                                                                                                                    \
  target void adam(float* w, float* m, float* v, const IntegerGradient& g, int count, float gain, const AdamStep& s) { \
    loops::adam(w, m, v, g, count, gain, s);                                                                           \
  }                                                                                                                    \
  target void sgd(float* w, float* m, const IntegerGradient& g, int count, float gain, const SgdStep& s) {             \
    loops::sgd(w, m, g, count, gain, s);                                                                               \
  }                                                                                                                    \
  }                                                                                                                    \
  const UpdateKernels update_kernels = {latent8, latent8_momentum, bop, adam, sgd};                                    \
  }
