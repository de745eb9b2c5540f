// Optimizer updates of a run of weights, with the weight gradient folded in as it is produced.
//
// `grad` is the integer gradient sum_b grad_y * x of `count` weights; one unit of it is worth `gain` after
// normalisation (8-bit optimizers: real gradient / mean |gradient| of the layer) or in real units (adam; sgd, times the
// root of the layer's number of weights). Element k draws random_half(first_index + k), or, where momentum and latent
// weight are both rounded, word first_index + k: its low half for the momentum, its high half for the weight.
//
// Latent weights keep to the closed interval [-1, 1], int8 ones to [-127, 127]: the gradient of one at the very end
// counts like any other, so that it can come back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/random.h"

namespace bitfleet {

// Gradient k is factor * sums[k] + offset, in 32 bits: what products over bits become over signs, or over x = 2 u -
// 255.
struct IntegerGradient {
  const int32_t* sums;
  int32_t factor;
  int32_t offset;
};

// Those of several runs of weights: gradient k of run r is factor * sums[r * stride + k] + offsets[r].
struct IntegerGradients {
  const int32_t* sums;
  size_t stride;
  int32_t factor;
  const int32_t* offsets;

  IntegerGradient run(int r) const { return {sums + static_cast<size_t>(r) * stride, factor, offsets[r]}; }
};

// Where runs of `count` weights each lie, and which random numbers they draw: those of the first, and what lies between
// one run and the next.
struct WeightRuns {
  int runs, count;
  size_t first, stride;
  uint32_t first_index, index_stride;

  size_t begin(int r) const { return first + static_cast<size_t>(r) * stride; }
  uint32_t index(int r) const { return first_index + static_cast<uint32_t>(r) * index_stride; }
};

// u <- round_stochastic(u - step * g), |u| <= 127; the binary weight is the sign of u.
struct Latent8Step {
  float step;  // in units of 1/127, for a gradient of 1
};

// m <- round_stochastic(decay * m + (1 - decay) * momentum_unit * g); u <- round_stochastic(u - step * m).
// One unit of m is a mean gradient of 1 / momentum_unit.
struct Latent8MomentumStep {
  float decay;
  float inflow;  // (1 - decay) * momentum_unit
  float step;    // step in units of 1/127, divided by momentum_unit
};

// Bop (Helwegen et al., NeurIPS 2019): m <- round_stochastic((1 - gamma) m + gamma * g * 127 / range); a weight flips
// when |m| > threshold and m has its sign.
struct BopStep {
  float keep;       // 1 - gamma
  float inflow;     // gamma * 127 / range
  float threshold;  // in units of m
};

// Adam (Kingma, Ba, ICLR 2015) on float32 latent weights, which are clipped to [-1, 1] afterwards.
struct AdamStep {
  float beta1;
  float beta2;
  float step;                // step size / (1 - beta1^t)
  float inverse_correction;  // 1 / (1 - beta2^t)
  float epsilon;
};

// SGD with momentum (Polyak; as in torch.optim.SGD) on float32 latent weights: m <- momentum * m + g,
// w <- clip(w - step * m) to [-1, 1].
struct SgdStep {
  float momentum;
  float step;
};

struct UpdateKernels {
  // `latent` is weight 0, from which the runs count.
  void (*latent8)(int8_t* latent, const WeightRuns& runs, const IntegerGradients& grads, float gain,
                  const Latent8Step& step, RandomStream stream);
  void (*latent8_momentum)(int8_t* latent, int8_t* momentum, const IntegerGradient& grad, int count, float gain,
                           const Latent8MomentumStep& step, RandomStream stream, uint32_t first_index);
  // `signs` holds count <= 32 binary weights as bits; returns the bits that flip.
  uint32_t (*bop)(uint32_t signs, int8_t* average, const IntegerGradient& grad, int count, float gain,
                  const BopStep& step, RandomStream stream, uint32_t first_index);
  void (*adam)(float* latent, float* mean, float* square, const IntegerGradient& grad, int count, float gain,
               const AdamStep& step);
  void (*sgd)(float* latent, float* momentum, const IntegerGradient& grad, int count, float gain, const SgdStep& step);
};

namespace portable {
extern const UpdateKernels update_kernels;
}
namespace avx2 {
extern const UpdateKernels update_kernels;
}
namespace avx512 {
extern const UpdateKernels update_kernels;
}

// Adam on real-valued parameters (beta) and their real gradients, without clipping.
void adam_real(float* value, float* mean, float* square, const float* grad, int count, const AdamStep& step);

}  // namespace bitfleet
