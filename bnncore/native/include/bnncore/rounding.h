// Stochastic rounding to 8 bits in fixed point, identical on every instruction set.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace bitfleet {

inline constexpr float kInt8Limit = 127.0f;

// Rounds x to an integer in [-127, 127], up with probability equal to its fraction: floor(x + r / 65536), taken in
// 16.16 fixed point. `random16` is uniform in [0, 65535]. |x| > 127 saturates. x must not be NaN.
inline int32_t round_stochastic(float x, uint32_t random16) {
  // Floats without their sign order like integers, and an integer minimum is one vector instruction everywhere.
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t magnitude = std::min(bits & 0x7fffffff, std::bit_cast<int32_t>(kInt8Limit));
  const float clamped = std::bit_cast<float>(magnitude | (bits & INT32_MIN));
  const int32_t fixed = static_cast<int32_t>(clamped * 65536.0f);
  return (fixed + static_cast<int32_t>(random16)) >> 16;
}

}  // namespace bitfleet
