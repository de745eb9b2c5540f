// The portable loops at 512 bits; pools of 2 x 2, whose rows are shorter than a vector, by hand.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include "loops_inl.h"

namespace bitfleet::avx512 {

namespace {

BITFLEET_AVX512 void pool_2x2(const int16_t* y, const PoolShape& s, int16_t* pooled, uint8_t* choices) {
  if (s.window_height != 2 || s.window_width != 2) return loops::max_pool(y, s, pooled, choices);
  const __m512i one = _mm512_set1_epi32(1), three = _mm512_set1_epi32(3);
  for (int row = 0; row < s.pooled_height; ++row, y += 2 * s.width) {
    for (int q = 0; q < s.pooled_width; q += 16) {
      const int left = s.pooled_width - q;
      const __mmask16 mask = left >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << left) - 1);
      const __m512i top = _mm512_maskz_loadu_epi32(mask, y + 2 * q);
      const __m512i bottom = _mm512_maskz_loadu_epi32(mask, y + s.width + 2 * q);
      // The left neighbour lies in the low half of a lane.
      const __m512i a = _mm512_srai_epi32(_mm512_slli_epi32(top, 16), 16), b = _mm512_srai_epi32(top, 16);
      const __m512i c = _mm512_srai_epi32(_mm512_slli_epi32(bottom, 16), 16), d = _mm512_srai_epi32(bottom, 16);
      const __m512i upper = _mm512_max_epi32(a, b), lower = _mm512_max_epi32(c, d);
      const size_t place = size_t(row) * s.pooled_width + q;
      _mm512_mask_cvtepi32_storeu_epi16(pooled + place, mask, _mm512_max_epi32(upper, lower));
      if (choices == nullptr) continue;
      const __m512i in_upper = _mm512_maskz_mov_epi32(_mm512_cmpgt_epi32_mask(b, a), one);
      const __m512i in_lower = _mm512_sub_epi32(three, _mm512_maskz_mov_epi32(_mm512_cmple_epi32_mask(d, c), one));
      const __m512i choice = _mm512_mask_mov_epi32(in_upper, _mm512_cmpgt_epi32_mask(lower, upper), in_lower);
      _mm512_mask_cvtepi32_storeu_epi8(choices + place, mask, choice);
    }
  }
}

}  // namespace

}  // namespace bitfleet::avx512

BITFLEET_DEFINE_CHANNEL_KERNELS_WITH(avx512, BITFLEET_AVX512_LOOPS, pool_2x2)
#endif
