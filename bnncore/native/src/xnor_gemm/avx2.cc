// Set bits by look-up (Mula, Kurz, Lemire, "Faster population counts using AVX2 instructions", 2016): VPSHUFB counts
// the bits of 32 half bytes. A byte's count is at most 8, so 31 words are added as bytes before VPSADBW widens them.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>

#include "../unroll.h"
#include "bnncore/xnor_gemm.h"
#include "rows_inl.h"

namespace bitfleet::avx2 {

#define BITFLEET_AVX2 __attribute__((target("avx2,popcnt")))

namespace {

constexpr int kBytesHold = 31;  // 31 * 8 = 248

// kRows rows by 8 positions, of which `some` are written.
template <int kRows>
BITFLEET_AVX2 inline void rows_by_8(const uint64_t* x, const int32_t* offsets, int some, const uint64_t* w,
                                    size_t w_stride, int words, int depth, const int16_t* excess, size_t excess_stride,
                                    int16_t* y, size_t y_stride) {
  const __m256i counts =
      _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  __m256i total[kRows][2];
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = zero;
  for (int start = 0; start < words; start += kBytesHold) {
    const int end = std::min(words, start + kBytesHold);
    __m256i bytes[kRows][2];
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) bytes[r][0] = bytes[r][1] = zero;
    for (int i = start; i < end; ++i) {
      const __m256i* columns = reinterpret_cast<const __m256i*>(x + offsets[i]);
      const __m256i x0 = _mm256_loadu_si256(columns), x1 = _mm256_loadu_si256(columns + 1);
      BITFLEET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256i word = _mm256_set1_epi64x(static_cast<int64_t>(w[r * w_stride + i]));
        const __m256i a = _mm256_xor_si256(x0, word), b = _mm256_xor_si256(x1, word);
        const __m256i a_low = _mm256_shuffle_epi8(counts, _mm256_and_si256(a, nibble));
        const __m256i a_high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(a, 4), nibble));
        const __m256i b_low = _mm256_shuffle_epi8(counts, _mm256_and_si256(b, nibble));
        const __m256i b_high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(b, 4), nibble));
        bytes[r][0] = _mm256_add_epi8(bytes[r][0], _mm256_add_epi8(a_low, a_high));
        bytes[r][1] = _mm256_add_epi8(bytes[r][1], _mm256_add_epi8(b_low, b_high));
      }
    }
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      total[r][0] = _mm256_add_epi64(total[r][0], _mm256_sad_epu8(bytes[r][0], zero));
      total[r][1] = _mm256_add_epi64(total[r][1], _mm256_sad_epu8(bytes[r][1], zero));
    }
  }
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const __m256i pairs = _mm256_packus_epi32(total[r][0], total[r][1]);
    const __m128i unequal =
        _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(_mm256_packus_epi32(pairs, pairs), in_order));
    __m128i products = _mm_sub_epi16(_mm_set1_epi16(static_cast<int16_t>(depth)), _mm_add_epi16(unequal, unequal));
    alignas(16) int16_t all[8] = {};
    if (excess != nullptr) {
      const int16_t* subtracted = excess + r * excess_stride;
      if (some < 8) {
        std::copy_n(subtracted, some, all);
        subtracted = all;
      }
      products = _mm_sub_epi16(products, _mm_loadu_si128(reinterpret_cast<const __m128i*>(subtracted)));
    }
    if (some == 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + r * y_stride), products);
    } else {
      _mm_store_si128(reinterpret_cast<__m128i*>(all), products);
      std::copy_n(all, some, y + r * y_stride);
    }
  }
}

}  // namespace

BITFLEET_AVX2 void xnor_gemm(const XnorPanel& x, int count, const uint64_t* w, size_t w_stride, int rows, int words,
                             int depth, const int16_t* excess, size_t excess_stride, int16_t* y, size_t y_stride) {
  loops::by_eight(rows_by_8<4>, rows_by_8<1>, x, count, w, w_stride, rows, words, depth, excess, excess_stride, y,
                  y_stride);
}

}  // namespace bitfleet::avx2
#endif
