// The 64-bit POPCNT instruction, which every AVX2 machine has: one word a cycle, four weight rows at a time so that
// each activation word is loaded once for four products.
#if defined(__x86_64__)
#include <immintrin.h>

#include "bnncore/packing.h"
#include "bnncore/xnor_gemm.h"

namespace bitfleet::avx2 {

__attribute__((target("avx2,popcnt"))) void xnor_gemm(const uint64_t* x, size_t x_stride, int batch, const uint64_t* w,
                                                      size_t w_stride, int rows, int words, int depth, int32_t* y,
                                                      size_t y_stride) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    const uint64_t* w0 = w + r * w_stride;
    const uint64_t* w1 = w0 + w_stride;
    const uint64_t* w2 = w1 + w_stride;
    const uint64_t* w3 = w2 + w_stride;
    for (int b = 0; b < batch; ++b) {
      const uint64_t* row = x + b * x_stride;
      int64_t u0 = 0, u1 = 0, u2 = 0, u3 = 0;
      for (int i = 0; i < words; ++i) {
        const uint64_t word = row[i];
        u0 += _mm_popcnt_u64(word ^ w0[i]);
        u1 += _mm_popcnt_u64(word ^ w1[i]);
        u2 += _mm_popcnt_u64(word ^ w2[i]);
        u3 += _mm_popcnt_u64(word ^ w3[i]);
      }
      int32_t* out = y + r * y_stride + b;
      out[0] = depth - 2 * static_cast<int32_t>(u0);
      out[y_stride] = depth - 2 * static_cast<int32_t>(u1);
      out[2 * y_stride] = depth - 2 * static_cast<int32_t>(u2);
      out[3 * y_stride] = depth - 2 * static_cast<int32_t>(u3);
    }
  }
  for (; r < rows; ++r) {
    for (int b = 0; b < batch; ++b) {
      int64_t unequal = 0;
      for (int i = 0; i < words; ++i) unequal += _mm_popcnt_u64(x[b * x_stride + i] ^ w[r * w_stride + i]);
      y[r * y_stride + b] = depth - 2 * static_cast<int32_t>(unequal);
    }
  }
}

}  // namespace bitfleet::avx2
#endif
