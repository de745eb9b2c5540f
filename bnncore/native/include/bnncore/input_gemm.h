// The first layer: 8-bit inputs u, read as x = 2u - 255, against binary weights.
//
//   input_gemm: y[r][p]    = sum_s sum_k w[r][s][k] * (2 u[p][s][k] - 255)
//   input_grad: out[r][k] += sum_j g[r][j] * u[j][k]                 (for the weight gradient; j = positions)
//
// What a position reads are `segments` runs of `width` bytes: one in a dense layer, one a row of the kernel in a
// convolution, whose map is read where it lies. The caller promises: u is readable for 64 bytes past its last run.
// Exact while segments * width * 255 < 2^30 (forward) and the sum of all depths * 127 * 255 < 2^31 (backward),
// kInputGradRun positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/sign_gemm.h"

namespace bitfleet {

inline constexpr int kInputGemmRows = 16;      // most weight rows expanded to bytes at once
inline constexpr int kInputGradDepth = 100;    // most positions in one call of input_grad
inline constexpr int kInputGradRun = 1 << 16;  // positions whose sum still fits
inline constexpr size_t kInputGradScratch = size_t{kInputGradDepth} * kColumnBlock * 2;

// Bytes of the weights that input_expand writes, in a form of each instruction set's own.
constexpr size_t input_expanded_bytes(int segments, int width) {
  return kInputGemmRows * (size_t(segments) * ((size_t(width) + 3) / 4 * 4) + sizeof(int32_t));
}

// w: [rows <= kInputGemmRows][w_stride words], whose bits follow each other without a gap; expanded: 64-byte aligned.
using InputExpand = void (*)(const uint64_t* w, size_t w_stride, int rows, int segments, int width, int8_t* expanded);

// Segment s of position p starts at u + p * u_stride + s * segment_stride; y: int16 or int32 [rows][y_stride], which
// must hold 255 * segments * width.
template <typename Y>
using InputGemm = void (*)(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded,
                           int rows, int segments, int width, Y* y, size_t y_stride);

// g: int8 [rows][g_stride], u: uint8 [depth <= kInputGradDepth][u_stride], of which 64 columns are read; out: int32
// [rows][kColumnBlock]. `expanded` has kInputGradScratch bytes.
using InputGrad = void (*)(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride,
                           uint8_t* expanded, int32_t* out);

#define BITFLEET_DECLARE(isa)                                                                                         \
  namespace isa {                                                                                                     \
  void input_expand(const uint64_t* w, size_t w_stride, int rows, int segments, int width, int8_t* expanded);         \
  void input_gemm_narrow(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded, \
                         int rows, int segments, int width, int16_t* y, size_t y_stride);                             \
  void input_gemm_wide(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded,   \
                       int rows, int segments, int width, int32_t* y, size_t y_stride);                               \
  void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride,           \
                  uint8_t* expanded, int32_t* out);                                                                   \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
BITFLEET_DECLARE(avx512)
BITFLEET_DECLARE(neon)
BITFLEET_DECLARE(neon_dotprod)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
