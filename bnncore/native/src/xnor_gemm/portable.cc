#include <algorithm>

#include "bnncore/xnor_gemm.h"

namespace bitfleet::portable {

namespace {

// Set bits of a word by the usual divide and conquer (Warren, Hacker's Delight, 5-1); no CPU support needed.
inline uint64_t popcount(uint64_t x) {
  x = x - ((x >> 1) & 0x5555555555555555ull);
  x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full;
  return (x * 0x0101010101010101ull) >> 56;
}

}  // namespace

void xnor_gemm(const uint64_t* x, size_t x_stride, int count, const uint64_t* w, size_t w_stride, int rows, int words,
               int depth, int16_t* y, size_t y_stride) {
  constexpr int kAtOnce = 8;
  for (int first = 0; first < count; first += kAtOnce) {
    const int some = std::min(kAtOnce, count - first);
    for (int r = 0; r < rows; ++r) {
      uint64_t unequal[kAtOnce] = {};
      for (int i = 0; i < words; ++i) {
        const uint64_t word = w[r * w_stride + i];
        for (int p = 0; p < kAtOnce; ++p) unequal[p] += popcount(x[i * x_stride + first + p] ^ word);
      }
      for (int p = 0; p < some; ++p) y[r * y_stride + first + p] = static_cast<int16_t>(depth - 2 * int(unequal[p]));
    }
  }
}

}  // namespace bitfleet::portable
