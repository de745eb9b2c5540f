// 8-bit integer x bit product: out[r][k] += sum_j g[r][j] * bit(j, k) for 32 columns k.
//
// One kernel serves both backward products of a binary layer: with P such a sum over bits, where 1 means -1,
//   sum_j g[r][j] * sign(j, k) = sum_j g[r][j] - 2 P,
// and a tap in the padding, whose x is 0, is a clear bit whose g is left out of the first sum.
//   grad_x: r = positions, j = output channels, bits = packed weights
//   grad_w: r = output channels, j = positions of the batch, bits = packed activations
//
// First `expand` turns 32 columns of up to kSignGemmDepth rows into what `accumulate` reads, once for any number of
// rows of g. The caller promises: g is readable up to an even j (one byte past an odd depth), |g| <= 127; `expanded`
// has kSignGemmScratch bytes, 32-byte aligned. Exact while the sum of all depths * 127 < 2^31.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

inline constexpr int kColumnBlock = 32;     // columns k handled at once
inline constexpr int kSignGemmDepth = 128;  // rows j expanded at once; 128 * 127 fits int16
inline constexpr size_t kSignGemmScratch = size_t{kSignGemmDepth} * kColumnBlock;

// bits: uint32 [depth <= kSignGemmDepth], column k of row j in bit k.
using SignExpand = void (*)(const uint32_t* bits, int depth, uint8_t* expanded);

// g: int8 [rows][g_stride], out: int32 [rows][out_stride], of which 32 columns are added to.
using SignAccumulate = void (*)(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* expanded,
                                int32_t* out, size_t out_stride);

#define BITFLEET_DECLARE(isa)                                                                                        \
  namespace isa {                                                                                                    \
  void sign_expand(const uint32_t* bits, int depth, uint8_t* expanded);                                              \
  void sign_accumulate(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* expanded, int32_t* out, \
                       size_t out_stride);                                                                           \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
