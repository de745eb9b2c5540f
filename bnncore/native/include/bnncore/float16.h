// IEEE 754 binary16 in uint16_t: conversions by bit moves, the same on every machine; where a CPU has instructions for
// them (F16C, FCVT) those give the same bits.
#pragma once

#include <bit>
#include <cstdint>

namespace bitfleet {

inline constexpr float kLargestHalf = 65504.0f;
inline constexpr int kHalfRandomBits = 13;  // what binary16 cuts off a float32 fraction

// Exact. A signalling NaN becomes quiet.
inline float from_half(uint16_t half) {
  const uint32_t sign = uint32_t{half} << 16 & 0x80000000u;
  const uint32_t rest = half & 0x7fffu;
  const float tiny = static_cast<float>(rest) * 0x1p-24f;  // zero and subnormal numbers
  const uint32_t normal = (rest << 13) + 0x38000000u;
  const uint32_t special = 0x7f800000u | (rest << 13 & 0x7fffffu) | ((rest & 0x3ffu) != 0 ? 0x400000u : 0u);
  const uint32_t finite = rest < 0x400u ? std::bit_cast<uint32_t>(tiny) : normal;
  return std::bit_cast<float>(sign | (rest < 0x7c00u ? finite : special));
}

// Rounds to nearest, ties to even; beyond 65519.99 gives an infinity.
inline uint16_t to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rest = bits & 0x7fffffffu;
  // Below 2^-14 the last place is 2^-24, that of numbers from 0.5 on: adding 0.5 rounds.
  const uint32_t tiny = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13;
  const uint32_t nan = 0x7e00u | (rest >> 13 & 0x1ffu);
  const uint32_t large = rest > 0x7f800000u ? nan : 0x7c00u;
  const uint32_t finite = rest < 0x38800000u ? tiny : normal;
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | (rest < 0x47800000u ? finite : large));
}

// The same, but saturates at +-65504. value must not be NaN.
inline uint16_t to_half_saturating(float value) {
  value = value > kLargestHalf ? kLargestHalf : value;
  return to_half(value < -kLargestHalf ? -kLargestHalf : value);
}

// Rounds away from zero with probability equal to the fraction cut off, towards zero otherwise; saturates. `random` is
// uniform in [0, 2^13). value must not be NaN.
inline uint16_t to_half_stochastic(float value, uint32_t random) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  float rest = std::bit_cast<float>(bits & 0x7fffffffu);
  rest = rest > kLargestHalf ? kLargestHalf : rest;
  const float small = rest < 0x1p-14f ? rest : 0.0f;
  const uint32_t tiny = static_cast<uint32_t>(static_cast<int32_t>(small * 0x1p37f)) + random;
  const uint32_t normal = std::bit_cast<uint32_t>(rest) - 0x38000000u + random;
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | (rest < 0x1p-14f ? tiny : normal) >> kHalfRandomBits);
}

}  // namespace bitfleet
