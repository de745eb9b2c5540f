// Twenty-four accumulators of four columns, six rows by sixteen, leave eight registers for four of b and the factors
// of a, which FMLA takes by element.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "../tiles_inl.h"
#include "../unroll.h"
#include "bnncore/sgemm.h"

namespace bitfleet::neon {

namespace {

template <int kRows>
void multiply_tile(const float* a, size_t a_stride, const float* panel, int depth, float* c, size_t c_stride,
                   bool add) {
  float32x4_t sums[kRows][4];
  BITFLEET_UNROLL
  for (int i = 0; i < kRows; ++i) {
    BITFLEET_UNROLL
    for (int v = 0; v < 4; ++v) sums[i][v] = add ? vld1q_f32(c + i * c_stride + 4 * v) : vdupq_n_f32(0.0f);
  }
  for (int k = 0; k < depth; ++k, panel += kSgemmColumns) {
    const float32x4_t b[4] = {vld1q_f32(panel), vld1q_f32(panel + 4), vld1q_f32(panel + 8), vld1q_f32(panel + 12)};
    BITFLEET_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const float32x4_t factor = vld1q_dup_f32(a + i * a_stride + k);
      BITFLEET_UNROLL
      for (int v = 0; v < 4; ++v) sums[i][v] = vfmaq_f32(sums[i][v], factor, b[v]);
    }
  }
  BITFLEET_UNROLL
  for (int i = 0; i < kRows; ++i) {
    BITFLEET_UNROLL
    for (int v = 0; v < 4; ++v) vst1q_f32(c + i * c_stride + 4 * v, sums[i][v]);
  }
}

// ZIP moves element (r, c) of a 4 x 4 tile to (c, r).
void transpose_4x4(const float* source, size_t source_stride, float* target, size_t target_stride) {
  float32x4_t in[4];
  for (int r = 0; r < 4; ++r) in[r] = vld1q_f32(source + r * source_stride);
  const float32x4_t a = vzip1q_f32(in[0], in[2]), b = vzip1q_f32(in[1], in[3]);
  const float32x4_t c = vzip2q_f32(in[0], in[2]), d = vzip2q_f32(in[1], in[3]);
  vst1q_f32(target, vzip1q_f32(a, b));
  vst1q_f32(target + target_stride, vzip2q_f32(a, b));
  vst1q_f32(target + 2 * target_stride, vzip1q_f32(c, d));
  vst1q_f32(target + 3 * target_stride, vzip2q_f32(c, d));
}

using Tile = void (*)(const float*, size_t, const float*, int, float*, size_t, bool);
constexpr Tile kRemainder[kSgemmRows] = {nullptr,          multiply_tile<1>, multiply_tile<2>,
                                         multiply_tile<3>, multiply_tile<4>, multiply_tile<5>};

}  // namespace

void sgemm(const float* a, size_t a_stride, int rows, const float* b, int depth, int columns, float* c, size_t c_stride,
           bool add) {
  for (int j = 0; j < columns; j += kSgemmColumns) {
    const float* panel = b + static_cast<size_t>(j) * static_cast<size_t>(depth);
    int i = 0;
    for (; i + kSgemmRows <= rows; i += kSgemmRows) {
      multiply_tile<kSgemmRows>(a + i * a_stride, a_stride, panel, depth, c + i * c_stride + j, c_stride, add);
    }
    if (i < rows) kRemainder[rows - i](a + i * a_stride, a_stride, panel, depth, c + i * c_stride + j, c_stride, add);
  }
}

void transpose_floats(const float* source, size_t source_stride, int rows, int columns, float* target,
                      size_t target_stride) {
  loops::transpose_tiles<4, transpose_4x4, portable::transpose_floats>(source, source_stride, rows, columns, target,
                                                                       target_stride);
}

}  // namespace bitfleet::neon
#endif
