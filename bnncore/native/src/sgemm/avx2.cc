// Twelve accumulators of eight floats: two loads of b and six broadcasts of a feed twelve fused multiply-adds.
#if defined(__x86_64__)
#include <immintrin.h>

#include "bnncore/sgemm.h"

namespace bitfleet::avx2 {

__attribute__((target("avx2,fma"))) void sgemm_tile(const float* a, const float* b, int depth, float* tile) {
  __m256 sum[kPanelRows][2];
  for (int r = 0; r < kPanelRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  for (int k = 0; k < depth; ++k, a += kPanelRows, b += kPanelColumns) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kPanelRows; ++r) {
      const __m256 value = _mm256_broadcast_ss(a + r);
      sum[r][0] = _mm256_fmadd_ps(value, b0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(value, b1, sum[r][1]);
    }
  }
  for (int r = 0; r < kPanelRows; ++r) {
    _mm256_storeu_ps(tile + r * kPanelColumns, sum[r][0]);
    _mm256_storeu_ps(tile + r * kPanelColumns + 8, sum[r][1]);
  }
}

}  // namespace bitfleet::avx2
#endif
