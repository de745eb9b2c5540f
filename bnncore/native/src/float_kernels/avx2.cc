// The portable loops at 256 bits, F16C's VCVTPH2PS and VCVTPS2PH for conversions, VMOVMSKPS for bits.
#if defined(__x86_64__)
#include <immintrin.h>

#include "loops_inl.h"

namespace bitfleet::avx2 {

namespace {

__attribute__((target("avx2,f16c"))) void widen(const uint16_t* halves, int count, float* out) {
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(eight));
  }
  for (; i < count; ++i) out[i] = from_half(halves[i]);
}

__attribute__((target("avx2,f16c"))) void narrow(const float* values, int count, uint16_t* halves) {
  const __m256 largest = _mm256_set1_ps(kLargestHalf), smallest = _mm256_set1_ps(-kLargestHalf);
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 eight = _mm256_max_ps(_mm256_min_ps(_mm256_loadu_ps(values + i), largest), smallest);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(halves + i), _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < count; ++i) halves[i] = to_half_saturating(values[i]);
}

__attribute__((target("avx2"))) void pack_norm(const float* x, int rows, int channels, uint64_t* negative,
                                               uint64_t* outside) {
  const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  for (int r = 0; r < rows; ++r, x += channels) {
    uint64_t below = 0, beyond = 0;
    int c = 0;
    for (; c + 8 <= channels; c += 8) {
      const __m256 eight = _mm256_loadu_ps(x + c);
      const __m256 is_below = _mm256_cmp_ps(eight, zero, _CMP_LT_OQ);
      const __m256 is_beyond = _mm256_cmp_ps(_mm256_andnot_ps(sign, eight), one, _CMP_GT_OQ);
      below |= static_cast<uint64_t>(_mm256_movemask_ps(is_below)) << c;
      beyond |= static_cast<uint64_t>(_mm256_movemask_ps(is_beyond)) << c;
    }
    for (; c < channels; ++c) {
      below |= static_cast<uint64_t>(x[c] < 0.0f) << c;
      beyond |= static_cast<uint64_t>(std::fabs(x[c]) > 1.0f) << c;
    }
    negative[r] = below;
    outside[r] = beyond;
  }
}

}  // namespace

}  // namespace bitfleet::avx2

BITFLEET_DEFINE_FLOAT_KERNELS(avx2, __attribute__((target("avx2"))))
#endif
