// Twelve 8-wide accumulators hide the latency of VFMADD231PS (4 cycles, two a cycle on Zen and Skylake); the two loads
// of b and six broadcasts of a fit beside the twelve products. A panel of b stays in the first cache.
#if defined(__x86_64__)
#include <immintrin.h>

#include "../tiles_inl.h"
#include "bnncore/sgemm.h"

namespace bitfleet::avx2 {

#define BITFLEET_FMA __attribute__((target("avx2,fma")))

namespace {

template <int kRows>
BITFLEET_FMA inline void multiply_tile(const float* a, size_t a_stride, const float* panel, int depth, float* c,
                                       size_t c_stride, bool add) {
  __m256 sums[kRows][2];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    sums[i][0] = add ? _mm256_loadu_ps(c + i * c_stride) : _mm256_setzero_ps();
    sums[i][1] = add ? _mm256_loadu_ps(c + i * c_stride + 8) : _mm256_setzero_ps();
  }
  for (int k = 0; k < depth; ++k) {
    const __m256 left = _mm256_loadu_ps(panel + static_cast<size_t>(k) * kSgemmColumns);
    const __m256 right = _mm256_loadu_ps(panel + static_cast<size_t>(k) * kSgemmColumns + 8);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256 factor = _mm256_broadcast_ss(a + i * a_stride + k);
      sums[i][0] = _mm256_fmadd_ps(factor, left, sums[i][0]);
      sums[i][1] = _mm256_fmadd_ps(factor, right, sums[i][1]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    _mm256_storeu_ps(c + i * c_stride, sums[i][0]);
    _mm256_storeu_ps(c + i * c_stride + 8, sums[i][1]);
  }
}

// Unpacks and permutes move element (r, c) of an 8 x 8 tile to (c, r).
BITFLEET_FMA inline void transpose_8x8(const float* source, size_t source_stride, float* target, size_t target_stride) {
  __m256 in[8], pairs[8], quads[8];
  for (int r = 0; r < 8; ++r) in[r] = _mm256_loadu_ps(source + r * source_stride);
  for (int r = 0; r < 8; r += 2) {
    pairs[r] = _mm256_unpacklo_ps(in[r], in[r + 1]);
    pairs[r + 1] = _mm256_unpackhi_ps(in[r], in[r + 1]);
  }
  for (int r = 0; r < 8; r += 4) {
    quads[r] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0x44);
    quads[r + 1] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0xee);
    quads[r + 2] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0x44);
    quads[r + 3] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(target + c * target_stride, _mm256_permute2f128_ps(quads[c], quads[c + 4], 0x20));
    _mm256_storeu_ps(target + (c + 4) * target_stride, _mm256_permute2f128_ps(quads[c], quads[c + 4], 0x31));
  }
}

}  // namespace

BITFLEET_FMA void sgemm(const float* a, size_t a_stride, int rows, const float* b, int depth, int columns, float* c,
                        size_t c_stride, bool add) {
  for (int j = 0; j < columns; j += kSgemmColumns) {
    const float* panel = b + static_cast<size_t>(j) * static_cast<size_t>(depth);
    int i = 0;
    for (; i + kSgemmRows <= rows; i += kSgemmRows) {
      multiply_tile<kSgemmRows>(a + i * a_stride, a_stride, panel, depth, c + i * c_stride + j, c_stride, add);
    }
    const float* rest = a + i * a_stride;
    float* target = c + i * c_stride + j;
    switch (rows - i) {
      case 5:
        multiply_tile<5>(rest, a_stride, panel, depth, target, c_stride, add);
        break;
      case 4:
        multiply_tile<4>(rest, a_stride, panel, depth, target, c_stride, add);
        break;
      case 3:
        multiply_tile<3>(rest, a_stride, panel, depth, target, c_stride, add);
        break;
      case 2:
        multiply_tile<2>(rest, a_stride, panel, depth, target, c_stride, add);
        break;
      case 1:
        multiply_tile<1>(rest, a_stride, panel, depth, target, c_stride, add);
        break;
      default:
        break;
    }
  }
}

BITFLEET_FMA void transpose_floats(const float* source, size_t source_stride, int rows, int columns, float* target,
                                   size_t target_stride) {
  loops::transpose_tiles<8, transpose_8x8, portable::transpose_floats>(source, source_stride, rows, columns, target,
                                                                       target_stride);
}

}  // namespace bitfleet::avx2
#endif
