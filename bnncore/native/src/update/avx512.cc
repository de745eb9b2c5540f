// The portable loops at 512 bits; latent8, which every weight goes through in every step, by hand.
#if defined(__x86_64__)
#include "../avx512.h"

#include <algorithm>

#include "../rounding_avx512.h"
#include "loops_inl.h"

namespace bitfleet::avx512 {

namespace {

// What a run of weights shares. Values are in units of 1 / 65536 throughout: a power of two scales a product, and a
// difference, without another rounding.
struct Latent8Run {
  RandomLanes random;
  __m512i offset;
  __m512 factor;

  // Sixteen weights; `mixed` are their random words' numbers after the first xor. kUnit is the gradient's factor.
  template <int kUnit>
  BITFLEET_AVX512 __m128i moved(__m128i before, __m512i sums, __m512i mixed) const {
    static_assert(kUnit == 1 || kUnit == 2 || kUnit == -2);
    const __m512i twice = kUnit == 1 ? sums : _mm512_add_epi32(sums, sums);
    const __m512i g = kUnit > 0 ? _mm512_add_epi32(offset, twice) : _mm512_sub_epi32(offset, twice);
    const __m512 change = _mm512_mul_ps(_mm512_cvtepi32_ps(g), factor);
    const __m512 latent = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(before));
    // Exact but for the difference's rounding: the product with a power of two has none.
    const __m512 next = _mm512_fmsub_ps(latent, _mm512_set1_ps(65536.0f), change);
    return round_scaled(next, random.finish(mixed));
  }

  // Weights whose random words' numbers have the same upper half, to which the first xor does the same then.
  template <int kUnit>
  BITFLEET_AVX512 void update(int8_t* latent, const int32_t* sums, int count, RandomStream stream,
                              uint32_t first_index) const {
    const uint32_t key = stream.low ^ (stream.low ^ first_index) >> 16;
    const __m512i shared = _mm512_set1_epi32(static_cast<int32_t>(key));
    __m512i index = _mm512_add_epi32(random.lane, _mm512_set1_epi32(static_cast<int32_t>(first_index)));
    int k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      __m128i* place = reinterpret_cast<__m128i*>(latent + k);
      const __m512i mixed = _mm512_xor_si512(index, shared);
      _mm_storeu_si128(place, moved<kUnit>(_mm_loadu_si128(place), _mm512_loadu_si512(sums + k), mixed));
      index = _mm512_add_epi32(index, _mm512_set1_epi32(kLanes));
    }
    if (k == count) return;
    const __mmask16 mask = first_lanes(count - k);
    const __m128i before = _mm_maskz_loadu_epi8(mask, latent + k);
    const __m512i last = _mm512_maskz_loadu_epi32(mask, sums + k);
    _mm_mask_storeu_epi8(latent + k, mask, moved<kUnit>(before, last, _mm512_xor_si512(index, shared)));
  }
};

BITFLEET_AVX512 void update_latent8(int8_t* latent, const IntegerGradient& grad, int count, float gain,
                                    const Latent8Step& s, RandomStream stream, uint32_t first_index) {
  const Latent8Run run{RandomLanes(stream), _mm512_set1_epi32(grad.offset), _mm512_set1_ps(gain * s.step * 65536.0f)};
  for (int k = 0; k < count;) {
    const uint32_t first = first_index + static_cast<uint32_t>(k);
    const int some = std::min(count - k, 0x10000 - static_cast<int>(first & 0xffffu));
    switch (grad.factor) {
      case 1:
        run.update<1>(latent + k, grad.sums + k, some, stream, first);
        break;
      case 2:
        run.update<2>(latent + k, grad.sums + k, some, stream, first);
        break;
      case -2:
        run.update<-2>(latent + k, grad.sums + k, some, stream, first);
        break;
      default:
        loops::latent8(latent + k, {grad.sums + k, grad.factor, grad.offset}, some, gain, s, stream, first);
    }
    k += some;
  }
}

}  // namespace

}  // namespace bitfleet::avx512

BITFLEET_DEFINE_UPDATE_KERNELS_WITH(avx512, BITFLEET_AVX512_LOOPS, update_latent8)
#endif
