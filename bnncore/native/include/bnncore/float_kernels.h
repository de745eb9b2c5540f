// Kernels of the presets `standard` and `paper`: products in float32, batch norms and updates, and the conversions
// between what is kept (float32, float16, bits, bytes) and what is computed with (float32).
//
// Maps are rows of channels, [rows][channels] with `stride` from row to row. Sums over rows are one chain a channel in
// ascending order, in double: the bits depend neither on the instruction set nor on the threads, which share the
// channels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/random.h"
#include "bnncore/sgemm.h"
#include "bnncore/update.h"

namespace bitfleet {

// One channel's part of the l2 batch-norm gradient: dy = g * inverse - mean_v - x * mean_vx.
struct NormGradient {
  const float* inverse;  // 1 / psi, or 0 for a dead channel
  const float* mean_v;   // mean of v = g / psi
  const float* mean_vx;  // mean of v * x
};

struct FloatKernels {
  Sgemm sgemm;
  TransposeFloats transpose;

  // out[i] = x[i] < 0 ? -1 : 1, so that sign(0) = sign(-0) = 1.
  void (*signs)(const float* x, int count, float* out);
  // out[i] = (2 u[i] - 255) * scale.
  void (*centre_bytes)(const uint8_t* u, int count, float scale, float* out);

  // sums[c] += y[r][c].
  void (*add_rows)(const float* y, size_t stride, int rows, int channels, double* sums);
  // sums[c] += (y[r][c] - mean[c])^2.
  void (*add_squares)(const float* y, size_t stride, int rows, int channels, const double* mean, double* sums);
  // sums[c] += |y[r][c] - mean[c]|.
  void (*add_deviations)(const float* y, size_t stride, int rows, int channels, const double* mean, double* sums);
  // x = (y - mean) * inverse + beta. x may be y.
  void (*normalise)(const float* y, int rows, int channels, const float* mean, const float* inverse, const float* beta,
                    float* x);
  // g counts as 0 where masked and |x| > 1. sum_g[c] += g; sum_gx[c] += g * (x - beta).
  void (*gradient_sums)(const float* g, const float* x, size_t stride, int rows, int channels, const float* beta,
                        bool masked, double* sum_g, double* sum_gx);
  // dy from g, masked likewise, and x - beta. dy may be g.
  void (*gradient)(const float* g, const float* x, int rows, int channels, const float* beta, bool masked,
                   const NormGradient& norm, float* dy);
  void (*adam)(float* weights, float* mean, float* square, const float* grad, size_t count, const AdamStep& step);
  void (*sgd)(float* weights, float* momentum, const float* grad, size_t count, float unit, const SgdStep& step);

  // binary16 to float32 and back, saturating at +-65504.
  void (*widen)(const uint16_t* halves, int count, float* out);
  void (*narrow)(const float* values, int count, uint16_t* halves);
  void (*half_signs)(const uint16_t* halves, int count, float* out);
  // Of up to 64 channels: bit c of negative[r] is set iff x[r][c] < 0, that of outside[r] iff |x[r][c]| > 1.
  void (*pack_norm)(const float* x, int rows, int channels, uint64_t* negative, uint64_t* outside);
  // As gradient_sums and gradient, with sgn(x) for x: sum_gs[c] += g * sgn(x), dy = g * inverse - mean_v - sgn(x) *
  // mean_vx. At most 64 channels, rows of them one after the other.
  void (*bit_gradient_sums)(const float* g, int rows, int channels, const uint64_t* negative, const uint64_t* outside,
                            double* sum_g, double* sum_gs);
  void (*bit_gradient)(const float* g, int rows, int channels, const uint64_t* negative, const uint64_t* outside,
                       const NormGradient& norm, float* dy);
  // out[i] = -1 where bit `first + i` is set, else 1.
  void (*expand_bits)(const uint64_t* words, int first, int count, float* out);
  // `negative` holds the signs of the gradient, one a weight from bit 0 on; its magnitude is `size`. What is kept is
  // rounded stochastically; element k draws word first_index + k.
  void (*half_adam)(uint16_t* weights, uint16_t* mean, uint16_t* square, const uint64_t* negative, int count,
                    float size, const AdamStep& step, RandomStream stream, uint32_t first_index);
  void (*half_sgd)(uint16_t* weights, uint16_t* momentum, const uint64_t* negative, int count, float size,
                   const SgdStep& step, RandomStream stream, uint32_t first_index);
};

namespace portable {
extern const FloatKernels float_kernels;
}
namespace avx2 {
extern const FloatKernels float_kernels;
}
namespace avx512 {
extern const FloatKernels float_kernels;
}
namespace neon {
extern const FloatKernels float_kernels;
}

}  // namespace bitfleet
