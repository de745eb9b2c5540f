// The portable loops at 512 bits; latent8, which every weight goes through in every step, by hand.
#if defined(__x86_64__)
#include "../avx512.h"

#include "../rounding_avx512.h"
#include "loops_inl.h"

namespace bitfleet::avx512 {

namespace {

// In units of 1 / 65536 throughout: a power of two scales a product, and a difference, without another rounding.
BITFLEET_AVX512 void update_latent8(int8_t* latent, const IntegerGradient& grad, int count, float gain,
                                    const Latent8Step& s, RandomStream stream, uint32_t first_index) {
  const RandomLanes random(stream);
  const __m512i unit = _mm512_set1_epi32(grad.factor), offset = _mm512_set1_epi32(grad.offset);
  const __m512 factor = _mm512_set1_ps(gain * s.step * 65536.0f);
  __m512i index = _mm512_add_epi32(random.lane, _mm512_set1_epi32(static_cast<int32_t>(first_index)));
  const auto moved = [&](__m128i before, __m512i sums) BITFLEET_AVX512 {
    const __m512i g = _mm512_add_epi32(_mm512_mullo_epi32(sums, unit), offset);
    const __m512 scaled = _mm512_cvtepi32_ps(_mm512_slli_epi32(_mm512_cvtepi8_epi32(before), 16));
    const __m512 next = _mm512_sub_ps(scaled, _mm512_mul_ps(_mm512_cvtepi32_ps(g), factor));
    const __m512i rounded = round_scaled(next, random.upper_halves(index));
    index = _mm512_add_epi32(index, _mm512_set1_epi32(kLanes));
    return _mm512_cvtepi32_epi8(rounded);
  };
  int k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    __m128i* place = reinterpret_cast<__m128i*>(latent + k);
    _mm_storeu_si128(place, moved(_mm_loadu_si128(place), _mm512_loadu_si512(grad.sums + k)));
  }
  if (k < count) {
    const __mmask16 mask = first_lanes(count - k);
    const __m128i before = _mm_maskz_loadu_epi8(mask, latent + k);
    _mm_mask_storeu_epi8(latent + k, mask, moved(before, _mm512_maskz_loadu_epi32(mask, grad.sums + k)));
  }
}

}  // namespace

}  // namespace bitfleet::avx512

BITFLEET_DEFINE_UPDATE_KERNELS_WITH(avx512, BITFLEET_AVX512_LOOPS, update_latent8)
#endif
