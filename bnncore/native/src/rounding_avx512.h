// Random halves of words and stochastic rounding (random.h, rounding.h), sixteen at once: the same operations on the
// same values.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "avx512.h"
#include "bnncore/random.h"
#include "bnncore/rounding.h"

namespace bitfleet::avx512 {

inline constexpr int kLanes = 16;

// A stream's words, sixteen at a time.
struct RandomLanes {
  uint32_t low;
  __m512i high, lane;

  BITFLEET_AVX512 explicit RandomLanes(RandomStream stream)
      : low(stream.low),
        high(_mm512_set1_epi32(static_cast<int32_t>(stream.high))),
        lane(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)) {}

  // Words number .. number + 15, a multiple of 16: their numbers differ in four bits, to which the first xor of a
  // word with its upper half does nothing.
  BITFLEET_AVX512 __m512i words(uint32_t number) const {
    const uint32_t first = number ^ low;
    __m512i x = _mm512_xor_si512(lane, _mm512_set1_epi32(static_cast<int32_t>(first ^ first >> 16)));
    x = _mm512_add_epi32(_mm512_mullo_epi32(x, _mm512_set1_epi32(0x21f0aaad)), high);
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int32_t>(0xd35a2d97u)));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
  }
};

// Which of the elements k .. k + 15 lie in [0, count).
constexpr __mmask16 lanes_inside(int k, int count) {
  const uint32_t from = k < 0 ? ~0u << std::min(-k, kLanes) : ~0u;
  const uint32_t to = count - k < kLanes ? (1u << std::max(count - k, 0)) - 1 : ~0u;
  return static_cast<__mmask16>(from & to);
}

// Calls part(k, lanes, halves) for sixteen elements from k on, of which the lanes are wanted: [0, count) in all.
// `first` is the number of element 0.
template <typename Part>
BITFLEET_AVX512 inline void for_halves(const RandomLanes& random, uint32_t first, int count, Part&& part) {
  const int skipped = static_cast<int>(first % kHalvesBlock);
  const auto block = [&](int k, __mmask16 upper, __mmask16 lower) BITFLEET_AVX512 {
    const __m512i words = random.words((first + static_cast<uint32_t>(k)) / 2);
    if (upper != 0) part(k, upper, _mm512_srli_epi32(words, 16));
    if (lower != 0) part(k + kLanes, lower, _mm512_and_si512(words, _mm512_set1_epi32(0xffff)));
  };
  int k = -skipped;
  if (k < 0) {
    block(k, lanes_inside(k, count), lanes_inside(k + kLanes, count));
    k += kHalvesBlock;
  }
  for (; k + kHalvesBlock <= count; k += kHalvesBlock) block(k, __mmask16{0xffff}, __mmask16{0xffff});
  if (k < count) block(k, lanes_inside(k, count), lanes_inside(k + kLanes, count));
}

// Values in units of 1 / 65536, whose magnitude is at most the limit's (the imm8 says: the smaller magnitude, the first
// operand's sign).
BITFLEET_AVX512 inline __m512 clamped(__m512 scaled) {
  return _mm512_range_ps(scaled, _mm512_set1_ps(kInt8Limit * 65536.0f), 0b0010);
}

// round_stochastic() of clamped values, as bytes: the integer part has eight bits, byte 2 of each lane.
BITFLEET_AVX512 inline __m128i round_clamped(__m512 scaled, __m512i random16) {
  const __m512i places =
      _mm512_castsi128_si512(_mm_setr_epi8(2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62));
  const __m512i sums = _mm512_add_epi32(_mm512_cvttps_epi32(scaled), random16);
  return _mm512_castsi512_si128(_mm512_permutexvar_epi8(places, sums));
}

}  // namespace bitfleet::avx512
