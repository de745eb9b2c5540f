// float16 (IEEE 754 binary16) as its bits: conversions that are the same on every machine.
#pragma once

#include <bit>
#include <cstdint>

namespace bitfleet {

struct Half {
  uint16_t bits;
};

inline float to_float(Half half) {
  const uint32_t sign = uint32_t{half.bits & 0x8000u} << 16;
  const uint32_t magnitude = half.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // As a float this is the value times 2^-112, subnormal numbers included.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

namespace detail {

// |x| below 2^16 to half bits; `addend` in [0, 2^13) is what the 13 bits that are cut off must overflow with.
inline uint16_t round_half(float x, uint32_t addend, bool to_even) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;  // 2^16 and above: infinity
  if (magnitude < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    const float unit = std::bit_cast<float>(magnitude) * 0x1p24f;
    const uint32_t whole = static_cast<uint32_t>(unit);
    const float rest = unit - static_cast<float>(whole);
    bool up = rest * 8192.0f + static_cast<float>(addend) >= 8192.0f;
    if (to_even) up = rest > 0.5f || (rest == 0.5f && (whole & 1u) != 0);
    return static_cast<uint16_t>(sign | (whole + (up ? 1u : 0u)));
  }
  if (to_even) addend = 0xfffu + (magnitude >> 13 & 1u);
  magnitude += addend;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u) >> 13);
}

}  // namespace detail

// To the nearest, ties to even; too large becomes infinity.
inline Half to_half(float x) { return {detail::round_half(x, 0, true)}; }

// Up with a probability equal to the fraction that is cut off. `random` is uniform in [0, 2^13).
inline Half to_half_stochastic(float x, uint32_t random) { return {detail::round_half(x, random, false)}; }

}  // namespace bitfleet
