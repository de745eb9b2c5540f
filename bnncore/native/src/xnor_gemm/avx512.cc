// VPOPCNTQ counts eight words at once, those of eight positions: three instructions for 512 products.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include <algorithm>

#include "../unroll.h"
#include "bnncore/xnor_gemm.h"

namespace bitfleet::avx512 {

namespace {

constexpr int kVectors = 4;  // of eight positions: the counts of one row, 16 bits each, fill a vector
constexpr int kAtOnce = 8 * kVectors;

// kRows rows by kUsed x 8 positions, of which those in `mask` are written.
template <int kRows, int kUsed>
BITFLEET_AVX512 inline void block(const XnorPanel& x, const PanelPlace* places, __mmask32 mask, const uint64_t* w,
                                  size_t w_stride, int words, int depth, const int16_t* excess, size_t excess_stride,
                                  int16_t* y, size_t y_stride) {
  const uint64_t* columns[kUsed];
  BITFLEET_UNROLL
  for (int v = 0; v < kUsed; ++v) columns[v] = x.words + places[v].word;
  __m512i unequal[kRows][kUsed];
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int v = 0; v < kUsed; ++v) unequal[r][v] = _mm512_setzero_si512();
  }
  for (int i = 0; i < words; ++i) {
    const ptrdiff_t offset = x.offsets[i];
    __m512i column[kUsed];
    BITFLEET_UNROLL
    for (int v = 0; v < kUsed; ++v) column[v] = _mm512_loadu_si512(columns[v] + offset);
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512i word = _mm512_set1_epi64(static_cast<int64_t>(w[r * w_stride + i]));
      BITFLEET_UNROLL
      for (int v = 0; v < kUsed; ++v) {
        unequal[r][v] = _mm512_add_epi64(unequal[r][v], _mm512_popcnt_epi64(_mm512_xor_si512(column[v], word)));
      }
    }
  }
  // Lane p has the counts of positions p, p + 8, p + 16 and p + 24.
  const __m512i in_order = _mm512_set_epi16(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2, 29, 25, 21, 17,
                                            13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
  const __m512i depths = _mm512_set1_epi16(static_cast<int16_t>(depth));
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    __m512i twice = _mm512_add_epi64(unequal[r][0], unequal[r][0]);
    BITFLEET_UNROLL
    for (int v = 1; v < kUsed; ++v) {
      twice = _mm512_or_si512(twice, _mm512_slli_epi64(unequal[r][v], static_cast<unsigned>(16 * v + 1)));
    }
    __m512i whole = depths;
    if (excess != nullptr) {
      whole = _mm512_sub_epi16(depths, _mm512_maskz_loadu_epi16(mask, excess + r * excess_stride));
    }
    _mm512_mask_storeu_epi16(y + r * y_stride, mask,
                             _mm512_sub_epi16(whole, _mm512_permutexvar_epi16(in_order, twice)));
  }
}

template <int kRows>
BITFLEET_AVX512 inline void rows_of(const XnorPanel& x, int count, const uint64_t* w, size_t w_stride, int words,
                                    int depth, const int16_t* excess, size_t excess_stride, int16_t* y,
                                    size_t y_stride) {
  PanelPlace next;
  for (int p = 0; p < count; p += kAtOnce) {
    PanelPlace places[kVectors];
    for (PanelPlace& place : places) place = next, next.advance(x);
    const int some = std::min(kAtOnce, count - p);
    const __mmask32 mask = some < kAtOnce ? (__mmask32{1} << some) - 1 : ~__mmask32{0};
    const int16_t* subtracted = excess == nullptr ? nullptr : excess + p;
    const auto multiply = some > 24   ? block<kRows, 4>
                          : some > 16 ? block<kRows, 3>
                          : some > 8  ? block<kRows, 2>
                                      : block<kRows, 1>;
    multiply(x, places, mask, w, w_stride, words, depth, subtracted, excess_stride, y + p, y_stride);
  }
}

}  // namespace

BITFLEET_AVX512 void xnor_gemm(const XnorPanel& x, int count, const uint64_t* w, size_t w_stride, int rows, int words,
                               int depth, const int16_t* excess, size_t excess_stride, int16_t* y, size_t y_stride) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    rows_of<4>(x, count, w + r * w_stride, w_stride, words, depth, excess, excess_stride, y + r * y_stride, y_stride);
    if (excess != nullptr) excess += 4 * excess_stride;
  }
  for (; r < rows; ++r) {
    rows_of<1>(x, count, w + r * w_stride, w_stride, words, depth, excess, excess_stride, y + r * y_stride, y_stride);
    if (excess != nullptr) excess += excess_stride;
  }
}

}  // namespace bitfleet::avx512
#endif
