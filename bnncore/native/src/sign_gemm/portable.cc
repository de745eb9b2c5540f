#include "bnncore/sign_gemm.h"

namespace bitfleet::portable {

// One byte a bit, row by row.
void sign_expand(const uint32_t* bits, int depth, uint8_t* expanded) {
  for (int j = 0; j < depth; ++j) {
    for (int k = 0; k < kColumnBlock; ++k) expanded[j * kColumnBlock + k] = bits[j] >> k & 1u;
  }
}

void sign_accumulate(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* expanded, int32_t* out,
                     size_t out_stride) {
  for (int r = 0; r < rows; ++r) {
    int16_t sums[kColumnBlock] = {};  // 128 * 127 fits
    for (int j = 0; j < depth; ++j) {
      const int16_t value = g[r * g_stride + j];
      for (int k = 0; k < kColumnBlock; ++k) sums[k] += static_cast<int16_t>(value * expanded[j * kColumnBlock + k]);
    }
    for (int k = 0; k < kColumnBlock; ++k) out[r * out_stride + k] += sums[k];
  }
}

}  // namespace bitfleet::portable
