// 8-bit integer x binary product: out[r][k] = sum_j g[r][j] * sign(s[j][k0 + k]) for a block of up to 32 columns.
//
// One kernel serves both backward products of a binary layer:
//   grad_x = grad_y * W   (r = samples, j = output channels, k = inputs, s = packed weights)
//   grad_w = grad_y^T * X (r = output channels, j = samples, k = inputs, s = packed activations)
//
// The caller promises: g is readable up to an even j (one byte past an odd depth), |g| <= 127; k0 is a multiple of 32;
// `g_sums[r]` = sum_j g[r][j]; `expanded` has kSignGemmScratch bytes, 32-byte aligned. Exact while
// depth * 127 < 2^31. All of out[r][0..31] is written; columns at or past `columns` hold no meaning.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

inline constexpr int kColumnBlock = 32;     // columns k handled at once
inline constexpr int kSignGemmDepth = 128;  // rows j expanded at once; 128 * 127 fits int16
inline constexpr size_t kSignGemmScratch = size_t{kSignGemmDepth} * kColumnBlock;

// g: int8 [rows][g_stride], s: [depth][s_stride words], out: int32 [rows][kColumnBlock].
using SignGemm = void (*)(const int8_t* g, size_t g_stride, const int32_t* g_sums, int rows, int depth,
                          const uint64_t* s, size_t s_stride, int k0, int columns, uint8_t* expanded, int32_t* out);

#define BITFLEET_DECLARE(isa)                                                                                     \
  namespace isa {                                                                                                 \
  void sign_gemm(const int8_t* g, size_t g_stride, const int32_t* g_sums, int rows, int depth, const uint64_t* s, \
                 size_t s_stride, int k0, int columns, uint8_t* expanded, int32_t* out);                          \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
