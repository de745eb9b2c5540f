// Stochastic rounding to 8 bits in fixed point, identical on every instruction set.
#pragma once

#include <cstdint>

namespace bitfleet {

inline constexpr float kInt8Limit = 127.0f;

// Rounds x to an integer in [-127, 127], up with probability equal to its fraction: floor(x + r / 65536), taken in
// 16.16 fixed point. `random16` is uniform in [0, 65535]. |x| > 127 saturates. x must not be NaN.
inline int32_t round_stochastic(float x, uint32_t random16) {
  x = x < -kInt8Limit ? -kInt8Limit : x;
  x = x > kInt8Limit ? kInt8Limit : x;
  const int32_t fixed = static_cast<int32_t>(x * 65536.0f);
  return (fixed + static_cast<int32_t>(random16)) >> 16;
}

}  // namespace bitfleet
