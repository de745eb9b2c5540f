// Pools of 2 x 2, whose rows are shorter than a vector, by hand, the end of a row under a mask; the portable loops at
// 256 bits do the rest.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include "loops_inl.h"

namespace bitfleet::avx512 {

namespace {

constexpr int kWindows = 16;  // at once: two neighbours of 16 bits fill a lane

bool is_2x2(const PoolShape& s) { return s.window_height == 2 && s.window_width == 2; }

// Of the first windows: theirs, and those of their neighbours.
struct Lanes {
  __mmask16 windows;
  __mmask32 pairs;

  explicit Lanes(int count)
      : windows(count >= kWindows ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1)),
        pairs(count >= kWindows ? ~__mmask32{0} : (__mmask32{1} << 2 * count) - 1) {}
};

constexpr uint32_t kLeft = 0x55555555;  // of each pair of neighbours

BITFLEET_AVX512_LOOPS void max_pool_of_any(const int16_t* y, const PoolShape& s, int16_t* pooled, uint8_t* choices) {
  loops::max_pool(y, s, pooled, choices);
}

BITFLEET_AVX512 void max_pool(const int16_t* y, const PoolShape& s, int16_t* pooled, uint8_t* choices) {
  if (!is_2x2(s)) return max_pool_of_any(y, s, pooled, choices);
  const __m512i one = _mm512_set1_epi16(1), two = _mm512_set1_epi16(2);
  for (int row = 0; row < s.pooled_height; ++row, y += 2 * s.width) {
    for (int q = 0; q < s.pooled_width; q += kWindows) {
      const Lanes lanes(s.pooled_width - q);
      const __m512i top = _mm512_maskz_loadu_epi16(lanes.pairs, y + 2 * q);
      const __m512i bottom = _mm512_maskz_loadu_epi16(lanes.pairs, y + s.width + 2 * q);
      // What stands at a left neighbour's place is what counts.
      const __m512i top_right = _mm512_rol_epi32(top, 16), bottom_right = _mm512_rol_epi32(bottom, 16);
      const __m512i upper = _mm512_max_epi16(top, top_right), lower = _mm512_max_epi16(bottom, bottom_right);
      const size_t place = size_t(row) * s.pooled_width + q;
      _mm512_mask_cvtepi32_storeu_epi16(pooled + place, lanes.windows, _mm512_max_epi16(upper, lower));
      if (choices == nullptr) continue;
      const uint32_t is_lower = _mm512_cmpgt_epi16_mask(lower, upper);
      const uint32_t is_right = (is_lower & _mm512_cmpgt_epi16_mask(bottom_right, bottom)) |
                                (~is_lower & _mm512_cmpgt_epi16_mask(top_right, top));
      const __m512i in_row = _mm512_maskz_mov_epi16(is_right, one);
      const __m512i choice = _mm512_mask_add_epi16(in_row, is_lower, in_row, two);
      _mm512_mask_cvtepi32_storeu_epi8(choices + place, lanes.windows, choice);
    }
  }
}

// Gradients of some windows, each where its bit is set, in the two lines of the map.
BITFLEET_AVX512 inline void store_windows(const int8_t* pooled, const Lanes& lanes, uint32_t top, uint32_t bottom,
                                          int8_t* grad, int width) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(lanes.windows, pooled));
  const __m256i twice = _mm256_or_si256(wide, _mm256_slli_epi16(wide, 8));
  _mm256_mask_storeu_epi8(grad, lanes.pairs, _mm256_maskz_mov_epi8(top, twice));
  _mm256_mask_storeu_epi8(grad + width, lanes.pairs, _mm256_maskz_mov_epi8(bottom, twice));
}

BITFLEET_AVX512_LOOPS void spread_any(const int8_t* pooled, const uint8_t* choices, const PoolShape& s, int8_t* grad) {
  loops::spread(pooled, choices, s, grad);
}

BITFLEET_AVX512 void spread(const int8_t* pooled, const uint8_t* choices, const PoolShape& s, int8_t* grad) {
  if (!is_2x2(s)) return spread_any(pooled, choices, s, grad);
  const __m256i in_top = _mm256_set1_epi16(0x0100), in_bottom = _mm256_set1_epi16(0x0302);
  for (int row = 0; row < s.pooled_height; ++row, pooled += s.pooled_width, choices += s.pooled_width) {
    for (int q = 0; q < s.pooled_width; q += kWindows) {
      const Lanes lanes(s.pooled_width - q);
      const __m256i wide = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(lanes.windows, choices + q));
      const __m256i twice = _mm256_or_si256(wide, _mm256_slli_epi16(wide, 8));
      store_windows(pooled + q, lanes, _mm256_cmpeq_epi8_mask(twice, in_top), _mm256_cmpeq_epi8_mask(twice, in_bottom),
                    grad + size_t(row) * 2 * s.width + 2 * q, s.width);
    }
  }
  loops::clear_rest(s, grad);
}

template <typename Y>
BITFLEET_AVX512_LOOPS void spread_signs_of_any(const Y* y, int32_t sign_from, const int8_t* pooled, const PoolShape& s,
                                               int8_t* grad) {
  loops::spread_signs(y, sign_from, pooled, s, grad);
}

BITFLEET_AVX512 void spread_signs(const int16_t* y, int32_t sign_from, const int8_t* pooled, const PoolShape& s,
                                  int8_t* grad) {
  if (!is_2x2(s)) return spread_signs_of_any(y, sign_from, pooled, s, grad);
  const __m512i from = _mm512_set1_epi16(loops::threshold_of<int16_t>(sign_from));
  for (int row = 0; row < s.pooled_height; ++row, pooled += s.pooled_width) {
    const size_t line = size_t(row) * 2 * s.width;
    for (int q = 0; q < s.pooled_width; q += kWindows) {
      const Lanes lanes(s.pooled_width - q);
      const int16_t* corner = y + line + 2 * q;
      const uint32_t top = _mm512_cmpge_epi16_mask(_mm512_maskz_loadu_epi16(lanes.pairs, corner), from);
      const uint32_t bottom = _mm512_cmpge_epi16_mask(_mm512_maskz_loadu_epi16(lanes.pairs, corner + s.width), from);
      // +1 at each of the four elements, as the bit of the left neighbour.
      const uint32_t a = top & kLeft, b = top >> 1 & kLeft, c = bottom & kLeft, d = bottom >> 1 & kLeft;
      const uint32_t upper = a | b;
      const uint32_t is_first = a | (kLeft & ~(b | c | d));
      store_windows(pooled + q, lanes, is_first | (b & ~a) << 1, (c & ~upper) | (d & ~(upper | c)) << 1,
                    grad + line + 2 * q, s.width);
    }
  }
  loops::clear_rest(s, grad);
}

}  // namespace

const PoolKernels pool_kernels = {max_pool, spread, spread_signs, spread_signs_of_any<int32_t>};

}  // namespace bitfleet::avx512
#endif
