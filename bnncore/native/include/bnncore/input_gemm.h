// The first layer: 8-bit inputs u, read as x = 2u - 255, against binary weights.
//
//   input_gemm: y[r][b]   = sum_k w[r][k] * (2 u[b][k] - 255)
//   input_grad: out[r][k] += sum_j g[r][j] * u[j][k]                 (for the weight gradient; j = positions)
//
// The caller promises: u is readable for 64 bytes past its last row. Exact while depth * 255 < 2^30 (forward) and the
// sum of all depths * 127 * 255 < 2^31 (backward), kInputGradRun positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/sign_gemm.h"

namespace bitfleet {

inline constexpr int kInputGemmRows = 16;      // most weight rows expanded to bytes at once
inline constexpr int kInputGradDepth = 64;     // most positions in one call of input_grad
inline constexpr int kInputGradRun = 1 << 16;  // positions whose sum still fits
inline constexpr size_t kInputGradScratch = size_t{kInputGradDepth} * kColumnBlock * 2;

// Bytes of `expanded` that input_gemm needs.
constexpr size_t input_gemm_scratch(int depth) { return kInputGemmRows * ((size_t(depth) + 63) / 64 * 64); }

// u: uint8 [batch][u_stride], w: [rows][w_stride words], y: int16 or int32 [rows][y_stride], which must hold
// 255 * depth.
template <typename Y>
using InputGemm = void (*)(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride, int rows,
                           int depth, int8_t* expanded, Y* y, size_t y_stride);

// g: int8 [rows][g_stride], u: uint8 [depth <= kInputGradDepth][u_stride], of which 64 columns are read; out: int32
// [rows][kColumnBlock]. `expanded` has kInputGradScratch bytes.
using InputGrad = void (*)(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride,
                           uint8_t* expanded, int32_t* out);

#define BITFLEET_DECLARE(isa)                                                                                        \
  namespace isa {                                                                                                    \
  void input_gemm_narrow(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride, int rows, \
                         int depth, int8_t* expanded, int16_t* y, size_t y_stride);                                  \
  void input_gemm_wide(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride, int rows,   \
                       int depth, int8_t* expanded, int32_t* y, size_t y_stride);                                    \
  void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride,          \
                  uint8_t* expanded, int32_t* out);                                                                  \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
BITFLEET_DECLARE(avx512)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
