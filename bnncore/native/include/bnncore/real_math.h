// exp and log from additions, multiplications and bit moves only, so that every machine gives the same bits.
// libm differs between C libraries; these do not. Relative error below 4e-15 (tests/bnncore/test_reference.py).
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace bitfleet {

inline constexpr int kExpDegree = 14;
inline constexpr auto kInverseFactorials = [] {
  std::array<double, kExpDegree + 1> inverse{};
  double factorial = 1.0;
  for (int i = 0; i <= kExpDegree; ++i) {
    factorial *= i > 0 ? i : 1;
    inverse[static_cast<size_t>(i)] = 1.0 / factorial;
  }
  return inverse;
}();

// e^x for x in [-700, 700]; smaller arguments give 0. Without a branch or a division, so that loops of it vectorise.
inline double exp_exact(double x) {
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2High = 0.693147180369123816490;  // 33 bits of ln 2, so that n * kLn2High is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  // Adding and subtracting 1.5 * 2^52 rounds to the nearest integer in round-to-nearest mode, and leaves it in the low
  // bits in between.
  constexpr double kRounder = 6755399441055744.0;
  const double rounded = x * kLog2E + kRounder, n = rounded - kRounder;
  const double r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= 0.35
  double sum = kInverseFactorials[kExpDegree];
  for (int i = kExpDegree - 1; i >= 0; --i) sum = sum * r + kInverseFactorials[i];  // the remainder is below 1e-18
  const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(rounded) + 1023) << 52);
  return x < -700.0 ? 0.0 : sum * power;
}

// Natural logarithm of a positive normal number.
inline double log_exact(double x) {
  constexpr double kLn2 = 0.6931471805599453;
  uint64_t bits = std::bit_cast<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    exponent += 1;
  }
  const double s = (mantissa - 1.0) / (mantissa + 1.0);  // |s| <= 0.172
  const double s2 = s * s;
  double sum = 0.0;
  for (int i = 23; i >= 1; i -= 2) sum = sum * s2 + 1.0 / i;  // log m = 2 s (1 + s^2/3 + s^4/5 + ...)
  return static_cast<double>(exponent) * kLn2 + 2.0 * s * sum;
}

}  // namespace bitfleet
