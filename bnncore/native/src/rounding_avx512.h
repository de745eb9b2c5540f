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
    const __m512i x = _mm512_xor_si512(index, low);
    return finish(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)));
  }

  // From the word after its first xor on, which a run of numbers can share.
  BITFLEET_AVX512 __m512i finish(__m512i x) const {
    x = _mm512_add_epi32(_mm512_mullo_epi32(x, _mm512_set1_epi32(0x21f0aaad)), high);
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int32_t>(0xd35a2d97u)));
    // Of x ^ x >> 15 only the upper half counts, to which the upper bit of x's lower half does not belong.
    return _mm512_srli_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), 16);
  }
};

// What round_stochastic() adds its random number to, of values in units of 1 / 65536: the magnitude is at most the
// limit's (the imm8 says: the smaller magnitude, the first operand's sign).
BITFLEET_AVX512 inline __m512i fixed_point(__m512 scaled) {
  return _mm512_cvttps_epi32(_mm512_range_ps(scaled, _mm512_set1_ps(kInt8Limit * 65536.0f), 0b0010));
}

// round_stochastic() of values in units of 1 / 65536, as bytes: the integer part has eight bits, byte 2 of each lane.
BITFLEET_AVX512 inline __m128i round_scaled(__m512 scaled, __m512i random16) {
  const __m512i places =
      _mm512_castsi128_si512(_mm_setr_epi8(2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62));
  const __m512i sums = _mm512_add_epi32(fixed_point(scaled), random16);
  return _mm512_castsi512_si128(_mm512_permutexvar_epi8(places, sums));
}

// The first `count` < 16 lanes.
constexpr __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

}  // namespace bitfleet::avx512
