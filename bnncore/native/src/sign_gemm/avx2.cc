// VPMADDUBSW multiplies 32 unsigned bytes, the sign bits as 0 or 1, by 32 signed ones and adds neighbours: 32 products
// an instruction. The bits of two rows j, j + 1 are expanded to interleaved bytes. Sums stay below 128 * 127 = 16,256,
// so int16 holds them.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "../bits_avx2.h"
#include "bnncore/sign_gemm.h"

namespace bitfleet::avx2 {

#define BITFLEET_AVX2 __attribute__((target("avx2")))

namespace {

// 32 bits to 32 bytes of 0 or 1.
BITFLEET_AVX2 inline __m256i expand_bits(uint32_t bits) {
  return _mm256_min_epu8(bits_to_bytes(bits), _mm256_set1_epi8(1));
}

BITFLEET_AVX2 inline __m256i broadcast_pair(const int8_t* g) {
  int16_t pair;
  std::memcpy(&pair, g, sizeof(pair));
  return _mm256_set1_epi16(pair);
}

// Adds the 32 int16 sums (columns 0-7 and 16-23 in `even`, 8-15 and 24-31 in `odd`) to out.
BITFLEET_AVX2 inline void add_to(int32_t* out, __m256i even, __m256i odd) {
  const __m128i parts[4] = {_mm256_castsi256_si128(even), _mm256_castsi256_si128(odd),
                            _mm256_extracti128_si256(even, 1), _mm256_extracti128_si256(odd, 1)};
  for (int i = 0; i < 4; ++i) {
    __m256i* target = reinterpret_cast<__m256i*>(out + 8 * i);
    _mm256_storeu_si256(target, _mm256_add_epi32(_mm256_loadu_si256(target), _mm256_cvtepi16_epi32(parts[i])));
  }
}

// Four rows of g at a time keep eight accumulators in registers.
template <int kRows>
BITFLEET_AVX2 inline void accumulate(const int8_t* g, size_t g_stride, const uint8_t* expanded, int pairs, int32_t* out,
                                     size_t out_stride) {
  __m256i even[kRows], odd[kRows];
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = _mm256_setzero_si256();
  for (int p = 0; p < pairs; ++p) {
    const __m256i* bits = reinterpret_cast<const __m256i*>(expanded + size_t{64} * p);
    const __m256i bits_even = _mm256_load_si256(bits);
    const __m256i bits_odd = _mm256_load_si256(bits + 1);
    for (int r = 0; r < kRows; ++r) {
      const __m256i pair = broadcast_pair(g + r * g_stride + 2 * p);
      even[r] = _mm256_add_epi16(even[r], _mm256_maddubs_epi16(bits_even, pair));
      odd[r] = _mm256_add_epi16(odd[r], _mm256_maddubs_epi16(bits_odd, pair));
    }
  }
  for (int r = 0; r < kRows; ++r) add_to(out + r * out_stride, even[r], odd[r]);
}

}  // namespace

BITFLEET_AVX2 void sign_expand(const uint32_t* bits, int depth, uint8_t* expanded) {
  for (int j = 0; j < depth; j += 2) {
    const __m256i a = expand_bits(bits[j]);
    const __m256i b = j + 1 < depth ? expand_bits(bits[j + 1]) : _mm256_setzero_si256();
    __m256i* target = reinterpret_cast<__m256i*>(expanded + size_t{32} * j);
    _mm256_store_si256(target, _mm256_unpacklo_epi8(a, b));
    _mm256_store_si256(target + 1, _mm256_unpackhi_epi8(a, b));
  }
}

BITFLEET_AVX2 void sign_accumulate(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* expanded,
                                   int32_t* out, size_t out_stride) {
  const int pairs = (depth + 1) / 2;
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    accumulate<4>(g + r * g_stride, g_stride, expanded, pairs, out + r * out_stride, out_stride);
  for (; r < rows; ++r) accumulate<1>(g + r * g_stride, g_stride, expanded, pairs, out + r * out_stride, out_stride);
}

}  // namespace bitfleet::avx2
#endif
