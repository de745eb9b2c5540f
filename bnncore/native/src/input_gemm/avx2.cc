// Forward: VPMADDUBSW of 32 input bytes by 32 weights of +-1; a pair sum is at most 510, so 64 of them fit int16.
// Gradient: VPMADDWD of sample pairs (u_j, u_j+1) by (g_j, g_j+1) in int16; a VPMADDUBSW would saturate at 2 * 255 *
// 127.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "../bits_avx2.h"
#include "bnncore/input_gemm.h"

namespace bitfleet::avx2 {

#define BITFLEET_AVX2 __attribute__((target("avx2")))

namespace {

// Writes signs as +-1 bytes and pads the row to a multiple of 32 with zeros; returns their sum.
BITFLEET_AVX2 int32_t expand_weights(const uint64_t* w, int depth, int8_t* expanded) {
  const int padded = (depth + 31) / 32 * 32;
  int32_t negative = 0;
  for (int k = 0; k < padded; k += 32) {
    const uint32_t bits = static_cast<uint32_t>(w[k / 64] >> (k % 64));
    negative += __builtin_popcount(bits);
    const __m256i is_clear = _mm256_cmpeq_epi8(bits_to_bytes(bits), _mm256_setzero_si256());
    const __m256i is_set = _mm256_xor_si256(is_clear, _mm256_set1_epi8(-1));
    const __m256i signs = _mm256_or_si256(is_set, _mm256_set1_epi8(1));  // -1 where set, else 1
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(expanded + k), signs);
  }
  std::memset(expanded + depth, 0, static_cast<size_t>(padded - depth));
  return depth - 2 * negative;
}

BITFLEET_AVX2 inline int32_t sum_lanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

constexpr int kPairSums = 64;  // 64 * 510 = 32,640 fits int16

template <int kRows>
BITFLEET_AVX2 inline void dot_rows(const uint8_t* u, const int8_t* w, size_t w_stride, int padded, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[kRows];
  for (int r = 0; r < kRows; ++r) total[r] = _mm256_setzero_si256();
  for (int k0 = 0; k0 < padded; k0 += 32 * kPairSums) {
    const int end = std::min(padded, k0 + 32 * kPairSums);
    __m256i sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = _mm256_setzero_si256();
    for (int k = k0; k < end; k += 32) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(u + k));
      for (int r = 0; r < kRows; ++r) {
        const __m256i signs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + r * w_stride + k));
        sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(bytes, signs));
      }
    }
    for (int r = 0; r < kRows; ++r) total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(sum[r], ones));
  }
  for (int r = 0; r < kRows; ++r) sums[r] = sum_lanes(total[r]);
}

template <int kRows>
BITFLEET_AVX2 inline void input_rows(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride,
                                     int depth, int8_t* expanded, int32_t* y, size_t y_stride) {
  const int padded = (depth + 31) / 32 * 32;
  int32_t weight_sums[kRows], sums[kRows];
  for (int r = 0; r < kRows; ++r) weight_sums[r] = expand_weights(w + r * w_stride, depth, expanded + r * padded);
  for (int b = 0; b < batch; ++b) {
    dot_rows<kRows>(u + b * u_stride, expanded, static_cast<size_t>(padded), padded, sums);
    for (int r = 0; r < kRows; ++r) y[r * y_stride + b] = 2 * sums[r] - 255 * weight_sums[r];
  }
}

// Four rows of g, 32 columns: sixteen int32 accumulators. `pairs` int16 pairs of g and of u.
template <int kRows>
BITFLEET_AVX2 inline void grad_rows(const int16_t* g, const int16_t* u, int pairs, int32_t* out) {
  for (int half = 0; half < 2; ++half) {
    __m256i sum[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < 2; ++v) {
        sum[r][v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(out + r * kColumnBlock + 16 * half + 8 * v));
      }
    }
    for (int p = 0; p < pairs; ++p) {
      const __m256i* columns = reinterpret_cast<const __m256i*>(u + size_t{64} * p + 32 * half);
      const __m256i u0 = _mm256_loadu_si256(columns), u1 = _mm256_loadu_si256(columns + 1);
      for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        std::memcpy(&pair, g + r * kInputGradDepth + 2 * p, sizeof(pair));
        const __m256i both = _mm256_set1_epi32(pair);
        sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(u0, both));
        sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(u1, both));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < 2; ++v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kColumnBlock + 16 * half + 8 * v), sum[r][v]);
      }
    }
  }
}

}  // namespace

BITFLEET_AVX2 void input_gemm(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride,
                              int rows, int depth, int8_t* expanded, int32_t* y, size_t y_stride) {
  int r = 0;
  for (; r + kInputGemmRows <= rows; r += kInputGemmRows) {
    input_rows<kInputGemmRows>(u, u_stride, batch, w + r * w_stride, w_stride, depth, expanded, y + r * y_stride,
                               y_stride);
  }
  for (; r < rows; ++r) {
    input_rows<1>(u, u_stride, batch, w + r * w_stride, w_stride, depth, expanded, y + r * y_stride, y_stride);
  }
}

BITFLEET_AVX2 void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride,
                              int16_t* expanded, int32_t* out) {
  int16_t* wide_g = expanded + size_t{kInputGradDepth} * kColumnBlock;
  const int pairs = (depth + 1) / 2;
  for (int p = 0; p < pairs; ++p) {
    const uint8_t* row = u + 2 * p * u_stride;
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
    const __m256i b = 2 * p + 1 < depth ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + u_stride))
                                        : _mm256_setzero_si256();
    const __m256i even = _mm256_unpacklo_epi8(a, b);  // columns 0-7 and 16-23, pairs of positions
    const __m256i odd = _mm256_unpackhi_epi8(a, b);   // columns 8-15 and 24-31
    __m256i* target = reinterpret_cast<__m256i*>(expanded + size_t{64} * p);
    _mm256_storeu_si256(target, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(even)));
    _mm256_storeu_si256(target + 1, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(odd)));
    _mm256_storeu_si256(target + 2, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(even, 1)));
    _mm256_storeu_si256(target + 3, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(odd, 1)));
  }
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < depth; ++j) wide_g[r * kInputGradDepth + j] = g[r * g_stride + j];
    if (depth % 2 != 0) wide_g[r * kInputGradDepth + depth] = 0;
  }
  int r = 0;
  for (; r + 4 <= rows; r += 4) grad_rows<4>(wide_g + r * kInputGradDepth, expanded, pairs, out + r * kColumnBlock);
  for (; r < rows; ++r) grad_rows<1>(wide_g + r * kInputGradDepth, expanded, pairs, out + r * kColumnBlock);
}

}  // namespace bitfleet::avx2
#endif
