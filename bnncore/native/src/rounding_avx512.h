// Random words and stochastic rounding (random.h, rounding.h), sixteen at once: the same operations on the same values.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "avx512.h"
#include "bnncore/random.h"
#include "bnncore/rounding.h"

namespace bitfleet::avx512 {

inline constexpr int kLanes = 16;

// The key of a stream in every lane, and the lanes' numbers.
struct RandomLanes {
  __m512i low, high, lane;

  BITFLEET_AVX512 explicit RandomLanes(RandomStream stream)
      : low(_mm512_set1_epi32(static_cast<int32_t>(stream.low))),
        high(_mm512_set1_epi32(static_cast<int32_t>(stream.high))),
        lane(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)) {}

  // The upper halves of the words with these numbers.
  BITFLEET_AVX512 __m512i upper_halves(__m512i index) const {
    __m512i x = _mm512_xor_si512(index, low);
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_add_epi32(_mm512_mullo_epi32(x, _mm512_set1_epi32(0x21f0aaad)), high);
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int32_t>(0xd35a2d97u)));
    // Of x ^ x >> 15 only the upper half counts, to which the upper bit of x's lower half does not belong.
    return _mm512_srli_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), 16);
  }
};

// round_stochastic() of values in units of 1 / 65536.
BITFLEET_AVX512 inline __m512i round_scaled(__m512 scaled, __m512i random16) {
  const __m512 limit = _mm512_set1_ps(kInt8Limit * 65536.0f), least = _mm512_set1_ps(kInt8Limit * -65536.0f);
  const __m512i fixed = _mm512_cvttps_epi32(_mm512_max_ps(_mm512_min_ps(scaled, limit), least));
  return _mm512_srai_epi32(_mm512_add_epi32(fixed, random16), 16);
}

// The first `count` < 16 lanes.
constexpr __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

}  // namespace bitfleet::avx512
