// The portable loops at 512 bits; latent8, which every weight goes through in every step, by hand.
#if defined(__x86_64__)
#include "../avx512.h"

#include "../rounding_avx512.h"
#include "loops_inl.h"

namespace bitfleet::avx512 {

namespace {

// What a run of weights shares. Values are in units of 1 / 65536 throughout: a power of two scales a product, and a
// difference, without another rounding. kUnit is the gradient's factor.
template <int kUnit>
struct Latent8Run {
  static_assert(kUnit == 1 || kUnit == 2 || kUnit == -2);
  int8_t* latent;
  const int32_t* sums;
  __m512i offset;
  __m512 factor;

  BITFLEET_AVX512 __m128i moved(__m128i before, __m512i sum, __m512i random16) const {
    const __m512i multiple = kUnit == 1 ? sum : _mm512_add_epi32(sum, sum);
    const __m512i g = kUnit > 0 ? _mm512_add_epi32(offset, multiple) : _mm512_sub_epi32(offset, multiple);
    const __m512 change = _mm512_mul_ps(_mm512_cvtepi32_ps(g), factor);
    const __m512 weight = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(before));
    // Exact but for the difference's rounding: the product with a power of two has none.
    return round_clamped(clamped(_mm512_fmsub_ps(weight, _mm512_set1_ps(65536.0f), change)), random16);
  }

  BITFLEET_AVX512 void operator()(int k, __mmask16 lanes, __m512i random16) const {
    if (lanes == 0xffff) {
      __m128i* place = reinterpret_cast<__m128i*>(latent + k);
      _mm_storeu_si128(place, moved(_mm_loadu_si128(place), _mm512_loadu_si512(sums + k), random16));
    } else {
      const __m128i before = _mm_maskz_loadu_epi8(lanes, latent + k);
      const __m512i sum = _mm512_maskz_loadu_epi32(lanes, sums + k);
      _mm_mask_storeu_epi8(latent + k, lanes, moved(before, sum, random16));
    }
  }
};

template <int kUnit>
BITFLEET_AVX512 void update_runs(int8_t* latent, const WeightRuns& runs, const IntegerGradients& grads, float factor,
                                 RandomStream stream) {
  const RandomLanes random(stream);
  const __m512 factors = _mm512_set1_ps(factor * 65536.0f);
  for (int r = 0; r < runs.runs; ++r) {
    const IntegerGradient grad = grads.run(r);
    for_halves(random, runs.index(r), runs.count,
               Latent8Run<kUnit>{latent + runs.begin(r), grad.sums, _mm512_set1_epi32(grad.offset), factors});
  }
}

BITFLEET_AVX512 void update_latent8(int8_t* latent, const WeightRuns& runs, const IntegerGradients& grads, float gain,
                                    const Latent8Step& s, RandomStream stream) {
  switch (grads.factor) {
    case 1:
      return update_runs<1>(latent, runs, grads, gain * s.step, stream);
    case 2:
      return update_runs<2>(latent, runs, grads, gain * s.step, stream);
    case -2:
      return update_runs<-2>(latent, runs, grads, gain * s.step, stream);
    default:
      loops::latent8(latent, runs, grads, gain, s, stream);
  }
}

}  // namespace

}  // namespace bitfleet::avx512

BITFLEET_DEFINE_UPDATE_KERNELS_WITH(avx512, BITFLEET_AVX512_LOOPS, update_latent8)
#endif
