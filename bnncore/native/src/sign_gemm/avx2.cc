// VPMADDUBSW multiplies 32 unsigned bytes, the sign bits as 0 or 1, by 32 signed ones and adds neighbours: 32 products
// an instruction. Four rows j share a 32-bit lane, so that four gradients are broadcast by a plain load. A lane of 16
// bits adds two of the four: 120 * 127 = 15,240 at most.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "../unroll.h"
#include "bnncore/sign_gemm.h"

namespace bitfleet::avx2 {

#define BITFLEET_AVX2 __attribute__((target("avx2")))

namespace {

constexpr int kQuadBytes = 4 * kColumnBlock;

// kRows rows by 16 columns.
template <int kRows>
BITFLEET_AVX2 inline void accumulate(const uint8_t* rows, size_t row_bytes, int quads, const uint8_t* bits,
                                     int32_t* out, size_t out_stride, bool adds) {
  __m256i low[kRows], high[kRows];
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  for (int q = 0; q < quads; ++q) {
    const __m256i* columns = reinterpret_cast<const __m256i*>(bits + size_t(q) * kQuadBytes);
    const __m256i first = _mm256_load_si256(columns), second = _mm256_load_si256(columns + 1);
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, rows + r * row_bytes + 4 * q, sizeof(four));
      const __m256i g = _mm256_set1_epi32(four);
      low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(first, g));
      high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(second, g));
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    __m256i* target = reinterpret_cast<__m256i*>(out + r * out_stride);
    __m256i first = _mm256_madd_epi16(low[r], ones), second = _mm256_madd_epi16(high[r], ones);
    if (adds) {
      first = _mm256_add_epi32(first, _mm256_loadu_si256(target));
      second = _mm256_add_epi32(second, _mm256_loadu_si256(target + 1));
    }
    _mm256_storeu_si256(target, first);
    _mm256_storeu_si256(target + 1, second);
  }
}

template <int kRows>
BITFLEET_AVX2 inline void all_columns(const uint8_t* rows, size_t row_bytes, int quads, const uint8_t* bits,
                                      int32_t* out, size_t out_stride, bool adds) {
  for (int part = 0; part < kColumnBlock / 16; ++part) {
    accumulate<kRows>(rows, row_bytes, quads, bits + 64 * part, out + 16 * part, out_stride, adds);
  }
}

}  // namespace

size_t sign_bits_bytes(int depth) { return most_sign_bits_bytes(depth); }

// Lane k of quad q holds the bits of rows 4 q .. 4 q + 3 at column k as bytes of 0 or 1.
BITFLEET_AVX2 void sign_expand_bits(const uint64_t* bits, int depth, uint8_t* expanded) {
  const __m256i select = _mm256_setr_epi32(0x01010101, 0x02020202, 0x04040404, 0x08080808, 0x10101010, 0x20202020,
                                           0x40404040, static_cast<int>(0x80808080u));
  for (int j = 0; j < depth; j += 4, expanded += kQuadBytes) {
    uint64_t row[4] = {};
    for (int i = 0; i < 4 && j + i < depth; ++i) row[i] = bits[j + i];
    const __m128i first = _mm_unpacklo_epi8(_mm_cvtsi64_si128(static_cast<int64_t>(row[0])),
                                            _mm_cvtsi64_si128(static_cast<int64_t>(row[1])));
    const __m128i second = _mm_unpacklo_epi8(_mm_cvtsi64_si128(static_cast<int64_t>(row[2])),
                                             _mm_cvtsi64_si128(static_cast<int64_t>(row[3])));
    alignas(32) int32_t bytes[8];  // byte b of the four rows
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm_unpacklo_epi16(first, second));
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes + 4), _mm_unpackhi_epi16(first, second));
    for (int b = 0; b < 8; ++b) {
      const __m256i set = _mm256_and_si256(_mm256_set1_epi32(bytes[b]), select);
      _mm256_store_si256(reinterpret_cast<__m256i*>(expanded) + b, _mm256_min_epu8(set, _mm256_set1_epi8(1)));
    }
  }
}

BITFLEET_AVX2 void sign_expand_rows(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded) {
  const size_t padded = (static_cast<size_t>(depth) + 3) / 4 * 4;
  for (int r = 0; r < rows; ++r, expanded += sign_row_bytes(depth)) {
    std::memcpy(expanded, g + r * g_stride, static_cast<size_t>(depth));
    std::memset(expanded + depth, 0, padded - static_cast<size_t>(depth));
  }
}

BITFLEET_AVX2 void sign_accumulate(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks,
                                   int32_t* out, size_t out_stride, size_t block_stride, bool adds) {
  const size_t row_bytes = sign_row_bytes(depth);
  const int quads = (depth + 3) / 4;
  for (int b = 0; b < blocks; ++b, bits += sign_bits_bytes(depth), out += block_stride) {
    int r = 0;
    for (; r + 4 <= row_count; r += 4) {
      all_columns<4>(rows + r * row_bytes, row_bytes, quads, bits, out + r * out_stride, out_stride, adds);
    }
    for (; r + 2 <= row_count; r += 2) {
      all_columns<2>(rows + r * row_bytes, row_bytes, quads, bits, out + r * out_stride, out_stride, adds);
    }
    if (r < row_count) {
      all_columns<1>(rows + r * row_bytes, row_bytes, quads, bits, out + r * out_stride, out_stride, adds);
    }
  }
}

}  // namespace bitfleet::avx2
#endif
