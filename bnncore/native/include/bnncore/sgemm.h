// float32 matrix product on operands that were gathered into small blocks.
//
// Every element of c is one chain of fused multiply-adds in ascending order of the depth, so the bits depend neither
// on the blocking nor on the instruction set nor on how threads share the work.
#pragma once

#include <cstddef>

namespace bitfleet {

inline constexpr int kSgemmRows = 6;      // rows of c held in registers
inline constexpr int kSgemmColumns = 16;  // columns of c held in registers: the width of a panel of b

// c[i][j] = (add ? c[i][j] : 0) + sum over k of a[i][k] * b[k][j].
//
// a: float32 [rows][a_stride >= depth]. b: panels [ceil(columns / 16)][depth][16], the last one filled up with zeros.
// c: float32 [rows][c_stride]; columns rounded up to 16 are written. Nothing may overlap. depth > 0.
using Sgemm = void (*)(const float* a, size_t a_stride, int rows, const float* b, int depth, int columns, float* c,
                       size_t c_stride, bool add);

// target[c][r] = source[r][c] for r < rows, c < columns. Nothing else of target is written.
using TransposeFloats = void (*)(const float* source, size_t source_stride, int rows, int columns, float* target,
                                 size_t target_stride);

#define BITFLEET_DECLARE(isa)                                                                             \
  namespace isa {                                                                                         \
  void sgemm(const float* a, size_t a_stride, int rows, const float* b, int depth, int columns, float* c, \
             size_t c_stride, bool add);                                                                  \
  void transpose_floats(const float* source, size_t source_stride, int rows, int columns, float* target,  \
                        size_t target_stride);                                                            \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
BITFLEET_DECLARE(neon)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
