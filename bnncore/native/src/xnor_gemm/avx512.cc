// VPOPCNTQ counts eight words at once, those of eight positions: three instructions for 512 products.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include <algorithm>

#include "../unroll.h"
#include "bnncore/xnor_gemm.h"

namespace bitfleet::avx512 {

namespace {

// kRows rows by kVectors x 8 positions, the last vector partly.
template <int kRows, int kVectors>
BITFLEET_AVX512 inline void block(const uint64_t* x, size_t x_stride, __mmask8 last, const uint64_t* w, size_t w_stride,
                                  int words, int depth, int16_t* y, size_t y_stride) {
  __m512i unequal[kRows][kVectors];
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int v = 0; v < kVectors; ++v) unequal[r][v] = _mm512_setzero_si512();
  }
  for (int i = 0; i < words; ++i) {
    __m512i column[kVectors];
    BITFLEET_UNROLL
    for (int v = 0; v < kVectors; ++v) column[v] = _mm512_loadu_si512(x + i * x_stride + 8 * v);
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512i word = _mm512_set1_epi64(static_cast<int64_t>(w[r * w_stride + i]));
      BITFLEET_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        unequal[r][v] = _mm512_add_epi64(unequal[r][v], _mm512_popcnt_epi64(_mm512_xor_si512(column[v], word)));
      }
    }
  }
  const __m512i depths = _mm512_set1_epi64(depth);
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i products = _mm512_sub_epi64(depths, _mm512_add_epi64(unequal[r][v], unequal[r][v]));
      const __mmask8 mask = v + 1 < kVectors ? __mmask8{0xff} : last;
      _mm512_mask_cvtepi64_storeu_epi16(y + r * y_stride + 8 * v, mask, products);
    }
  }
}

template <int kRows>
BITFLEET_AVX512 inline void rows_of(const uint64_t* x, size_t x_stride, int count, const uint64_t* w, size_t w_stride,
                                    int words, int depth, int16_t* y, size_t y_stride) {
  constexpr int kVectors = kRows > 4 ? 2 : 4;
  constexpr int kAtOnce = 8 * kVectors;
  int p = 0;
  for (; p + kAtOnce <= count; p += kAtOnce) {
    block<kRows, kVectors>(x + p, x_stride, 0xff, w, w_stride, words, depth, y + p, y_stride);
  }
  for (; p < count; p += 8) {
    const int some = std::min(8, count - p);
    block<kRows, 1>(x + p, x_stride, static_cast<__mmask8>((1 << some) - 1), w, w_stride, words, depth, y + p,
                    y_stride);
  }
}

}  // namespace

BITFLEET_AVX512 void xnor_gemm(const uint64_t* x, size_t x_stride, int count, const uint64_t* w, size_t w_stride,
                               int rows, int words, int depth, int16_t* y, size_t y_stride) {
  int r = 0;
  for (; r + 8 <= rows; r += 8) {
    rows_of<8>(x, x_stride, count, w + r * w_stride, w_stride, words, depth, y + r * y_stride, y_stride);
  }
  for (; r + 4 <= rows; r += 4) {
    rows_of<4>(x, x_stride, count, w + r * w_stride, w_stride, words, depth, y + r * y_stride, y_stride);
  }
  for (; r < rows; ++r) {
    rows_of<1>(x, x_stride, count, w + r * w_stride, w_stride, words, depth, y + r * y_stride, y_stride);
  }
}

}  // namespace bitfleet::avx512
#endif
