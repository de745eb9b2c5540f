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

void xnor_gemm(const XnorPanel& x, int count, const uint64_t* w, size_t w_stride, int rows, int words, int depth,
               const int16_t* excess, size_t excess_stride, int16_t* y, size_t y_stride) {
  constexpr int kAtOnce = 8;
  PanelPlace place;
  for (int first = 0; first < count; first += kAtOnce, place.advance(x)) {
    const int some = std::min(kAtOnce, count - first);
    const uint64_t* columns = x.words + place.word;
    for (int r = 0; r < rows; ++r) {
      uint64_t unequal[kAtOnce] = {};
      for (int i = 0; i < words; ++i) {
        const uint64_t word = w[r * w_stride + i];
        for (int p = 0; p < kAtOnce; ++p) unequal[p] += popcount(columns[x.offsets[i] + p] ^ word);
      }
      for (int p = 0; p < some; ++p) {
        const int whole = excess == nullptr ? depth : depth - excess[r * excess_stride + first + p];
        y[r * y_stride + first + p] = static_cast<int16_t>(whole - 2 * static_cast<int>(unequal[p]));
      }
    }
  }
}

}  // namespace bitfleet::portable
