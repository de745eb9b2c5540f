#include "bnncore/packing.h"
#include "bnncore/xnor_gemm.h"

namespace bitfleet::portable {

namespace {

// Set bits of a word by the usual divide and conquer (Warren, Hacker's Delight, 5-1); no CPU support needed.
int popcount(uint64_t x) {
  x = x - ((x >> 1) & 0x5555555555555555ull);
  x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full;
  return static_cast<int>((x * 0x0101010101010101ull) >> 56);
}

}  // namespace

void xnor_gemm(const uint64_t* x, size_t x_stride, int batch, const uint64_t* w, size_t w_stride, int rows, int words,
               int depth, int32_t* y, size_t y_stride) {
  for (int r = 0; r < rows; ++r) {
    for (int b = 0; b < batch; ++b) {
      int unequal = 0;
      for (int i = 0; i < words; ++i) unequal += popcount(x[b * x_stride + i] ^ w[r * w_stride + i]);
      y[r * y_stride + b] = depth - 2 * unequal;
    }
  }
}

}  // namespace bitfleet::portable
