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

template <int kRows, typename Y>
BITFLEET_AVX2 inline void input_rows(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride,
                                     int depth, int8_t* expanded, Y* y, size_t y_stride) {
  const int padded = (depth + 31) / 32 * 32;
  int32_t weight_sums[kRows], sums[kRows];
  for (int r = 0; r < kRows; ++r) weight_sums[r] = expand_weights(w + r * w_stride, depth, expanded + r * padded);
  for (int b = 0; b < batch; ++b) {
    dot_rows<kRows>(u + b * u_stride, expanded, static_cast<size_t>(padded), padded, sums);
    for (int r = 0; r < kRows; ++r) y[r * y_stride + b] = static_cast<Y>(2 * sums[r] - 255 * weight_sums[r]);
  }
}

// Rows of g by 16 columns; `pairs` int16 pairs of positions, of which g has `depth`.
template <int kRows>
BITFLEET_AVX2 inline void grad_rows(const int8_t* g, size_t g_stride, const uint8_t* u, int depth, int32_t* out) {
  __m256i sum[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      sum[r][v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(out + r * kColumnBlock + 8 * v));
    }
  }
  for (int j = 0; j < depth; j += 2) {
    const __m256i* columns = reinterpret_cast<const __m256i*>(u + size_t(j) * 2 * kColumnBlock);
    const __m256i u0 = _mm256_load_si256(columns), u1 = _mm256_load_si256(columns + 1);
    for (int r = 0; r < kRows; ++r) {
      const int8_t* pair = g + r * g_stride + j;
      const uint32_t low = static_cast<uint16_t>(int16_t{pair[0]});
      const uint32_t high = j + 1 < depth ? static_cast<uint16_t>(int16_t{pair[1]}) : 0u;
      const __m256i both = _mm256_set1_epi32(static_cast<int32_t>(high << 16 | low));
      sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(u0, both));
      sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(u1, both));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kColumnBlock + 8 * v), sum[r][v]);
    }
  }
}

template <typename Y>
BITFLEET_AVX2 void gemm(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride, int rows,
                        int depth, int8_t* expanded, Y* y, size_t y_stride) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    input_rows<4>(u, u_stride, batch, w + r * w_stride, w_stride, depth, expanded, y + r * y_stride, y_stride);
  }
  for (; r < rows; ++r) {
    input_rows<1>(u, u_stride, batch, w + r * w_stride, w_stride, depth, expanded, y + r * y_stride, y_stride);
  }
}

}  // namespace

BITFLEET_AVX2 void input_gemm_narrow(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride,
                                     int rows, int depth, int8_t* expanded, int16_t* y, size_t y_stride) {
  gemm(u, u_stride, batch, w, w_stride, rows, depth, expanded, y, y_stride);
}

BITFLEET_AVX2 void input_gemm_wide(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride,
                                   int rows, int depth, int8_t* expanded, int32_t* y, size_t y_stride) {
  gemm(u, u_stride, batch, w, w_stride, rows, depth, expanded, y, y_stride);
}

// Pairs of positions as int16, 16 columns to 64 bytes.
BITFLEET_AVX2 void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride,
                              uint8_t* expanded, int32_t* out) {
  for (int j = 0; j < depth; j += 2) {
    for (int part = 0; part < kColumnBlock / 16; ++part) {
      const uint8_t* row = u + j * u_stride + 16 * part;
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
      const __m128i b =
          j + 1 < depth ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + u_stride)) : _mm_setzero_si128();
      __m256i* target = reinterpret_cast<__m256i*>(expanded + size_t(j) * 2 * kColumnBlock + 64 * part);
      _mm256_store_si256(target, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)));
      _mm256_store_si256(target + 1, _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)));
    }
  }
  for (int part = 0; part < kColumnBlock / 16; ++part) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
      grad_rows<4>(g + r * g_stride, g_stride, expanded + 64 * part, depth, out + r * kColumnBlock + 16 * part);
    }
    for (; r < rows; ++r) {
      grad_rows<1>(g + r * g_stride, g_stride, expanded + 64 * part, depth, out + r * kColumnBlock + 16 * part);
    }
  }
}

}  // namespace bitfleet::avx2
#endif
