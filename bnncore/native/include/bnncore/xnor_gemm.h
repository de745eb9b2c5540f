// Binary x binary product: y[r][p] = sum_i w[r][i] * x[i][p] over signs, as depth - 2 * popcount(x XOR w).
//
// x is a panel: word i of position p lies at x[i * x_stride + p], so that neighbouring positions fill a vector. The
// caller promises: x is readable up to a multiple of kPanelLanes positions; columns of x and rows of w hold `words`
// words with the same `depth` bits in use, the others zero; y does not overlap them. Exact for depth <= kXnorDepth;
// a depth of 0 gives a part's -2 * popcount, exact for up to 255 words.
// Every instruction set gives the same integers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

inline constexpr int kXnorDepth = 32766;  // |y| stays below the largest int16

// x: uint64 [words][x_stride], w: [rows][w_stride words], y: int16 [rows][y_stride], of which `count` are written.
using XnorGemm = void (*)(const uint64_t* x, size_t x_stride, int count, const uint64_t* w, size_t w_stride, int rows,
                          int words, int depth, int16_t* y, size_t y_stride);

#define BITFLEET_DECLARE(isa)                                                                                 \
  namespace isa {                                                                                             \
  void xnor_gemm(const uint64_t* x, size_t x_stride, int count, const uint64_t* w, size_t w_stride, int rows, \
                 int words, int depth, int16_t* y, size_t y_stride);                                          \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
BITFLEET_DECLARE(avx512)
BITFLEET_DECLARE(neon)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
