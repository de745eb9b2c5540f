// Binary x binary product: y[r][b] = sum_k w[r][k] * x[b][k] over signs, as depth - 2 * popcount(x XOR w).
//
// The caller promises: rows of x and w hold `words` words with the same `depth` bits in use, the others zero; `y` does
// not overlap them. Exact: |y| <= depth < 2^31. Every instruction set gives the same integers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

// x: [batch][x_stride words], w: [rows][w_stride words], y: int32 [rows][y_stride].
using XnorGemm = void (*)(const uint64_t* x, size_t x_stride, int batch, const uint64_t* w, size_t w_stride, int rows,
                          int words, int depth, int32_t* y, size_t y_stride);

#define BITFLEET_DECLARE(isa)                                                                                 \
  namespace isa {                                                                                             \
  void xnor_gemm(const uint64_t* x, size_t x_stride, int batch, const uint64_t* w, size_t w_stride, int rows, \
                 int words, int depth, int32_t* y, size_t y_stride);                                          \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
