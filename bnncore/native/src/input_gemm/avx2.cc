// Forward: VPMADDUBSW of four input bytes, the same in every lane, by four weights of +-1 of eight rows; a pair sum is
// at most 510, so 64 of them fit int16. Gradient: VPMADDWD of position pairs (u_j, u_j+1) by (g_j, g_j+1) in int16; a
// VPMADDUBSW would saturate at 2 * 255 * 127.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "../unroll.h"
#include "bnncore/input_gemm.h"
#include "quads_inl.h"
#include "widths_inl.h"

namespace bitfleet::avx2 {

#define BITFLEET_AVX2 __attribute__((target("avx2")))

namespace {

constexpr int kPairSums = 64;  // 64 * 510 = 32,640 fits int16
constexpr int kAtOnce = 4;     // positions: eight accumulators

// Sums of 16 rows at kAtOnce positions: sums [kAtOnce][16].
BITFLEET_AVX2 inline void add_positions(const uint8_t* const* u, size_t segment_stride, const int8_t* expanded,
                                        int segments, int width, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[kAtOnce][2];
  BITFLEET_UNROLL
  for (int p = 0; p < kAtOnce; ++p) total[p][0] = total[p][1] = _mm256_setzero_si256();
  for (int s = 0; s < segments; ++s) {
    for (int start = 0; start < width; start += 4 * kPairSums) {
      const int end = std::min(width, start + 4 * kPairSums);
      __m256i sum[kAtOnce][2];
      BITFLEET_UNROLL
      for (int p = 0; p < kAtOnce; ++p) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
      for (int k = start; k < end; k += 4, expanded += 64) {
        const __m256i* weights = reinterpret_cast<const __m256i*>(expanded);
        const __m256i low = _mm256_load_si256(weights), high = _mm256_load_si256(weights + 1);
        BITFLEET_UNROLL
        for (int p = 0; p < kAtOnce; ++p) {
          int32_t four;
          std::memcpy(&four, u[p] + s * segment_stride + k, sizeof(four));
          const __m256i bytes = _mm256_set1_epi32(four);
          sum[p][0] = _mm256_add_epi16(sum[p][0], _mm256_maddubs_epi16(bytes, low));
          sum[p][1] = _mm256_add_epi16(sum[p][1], _mm256_maddubs_epi16(bytes, high));
        }
      }
      BITFLEET_UNROLL
      for (int p = 0; p < kAtOnce; ++p) {
        total[p][0] = _mm256_add_epi32(total[p][0], _mm256_madd_epi16(sum[p][0], ones));
        total[p][1] = _mm256_add_epi32(total[p][1], _mm256_madd_epi16(sum[p][1], ones));
      }
    }
  }
  const __m256i* offsets = reinterpret_cast<const __m256i*>(expanded);
  BITFLEET_UNROLL
  for (int p = 0; p < kAtOnce; ++p) {
    BITFLEET_UNROLL
    for (int h = 0; h < 2; ++h) {
      const __m256i twice = _mm256_add_epi32(total[p][h], total[p][h]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 16 * p + 8 * h),
                          _mm256_sub_epi32(twice, _mm256_load_si256(offsets + h)));
    }
  }
}

template <typename Y>
BITFLEET_AVX2 void gemm(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded,
                        int rows, int segments, int width, Y* y, size_t y_stride) {
  for (int first = 0; first < count; first += kAtOnce) {
    const int some = std::min(kAtOnce, count - first);
    const uint8_t* position[kAtOnce];  // past the end the last one again: computed, and never stored
    BITFLEET_UNROLL
    for (int p = 0; p < kAtOnce; ++p) position[p] = u + size_t(first + std::min(p, some - 1)) * u_stride;
    alignas(32) int32_t sums[kAtOnce * kInputGemmRows];
    add_positions(position, segment_stride, expanded, segments, width, sums);
    for (int r = 0; r < rows; ++r) {
      for (int p = 0; p < some; ++p) y[r * y_stride + first + p] = static_cast<Y>(sums[p * kInputGemmRows + r]);
    }
  }
}

// Rows of g by 16 columns; `pairs` int16 pairs of positions, of which g has `depth`.
template <int kRows>
BITFLEET_AVX2 inline void grad_rows(const int8_t* g, size_t g_stride, const uint8_t* u, int depth, int32_t* out) {
  __m256i sum[kRows][2];
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int v = 0; v < 2; ++v) {
      sum[r][v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(out + r * kColumnBlock + 8 * v));
    }
  }
  for (int j = 0; j < depth; j += 2) {
    const __m256i* columns = reinterpret_cast<const __m256i*>(u + size_t(j) * 2 * kColumnBlock);
    const __m256i u0 = _mm256_load_si256(columns), u1 = _mm256_load_si256(columns + 1);
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int8_t* pair = g + r * g_stride + j;
      const uint32_t low = static_cast<uint16_t>(int16_t{pair[0]});
      const uint32_t high = j + 1 < depth ? static_cast<uint16_t>(int16_t{pair[1]}) : 0u;
      const __m256i both = _mm256_set1_epi32(static_cast<int32_t>(high << 16 | low));
      sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(u0, both));
      sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(u1, both));
    }
  }
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int v = 0; v < 2; ++v) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kColumnBlock + 8 * v), sum[r][v]);
    }
  }
}

}  // namespace

BITFLEET_AVX2 void input_expand(const uint64_t* w, size_t w_stride, int rows, int segments, int width,
                                int8_t* expanded) {
  loops::expand_quads(w, w_stride, rows, segments, width, expanded);
}

BITFLEET_DEFINE_INPUT_GEMM_WIDTHS(BITFLEET_AVX2)

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
