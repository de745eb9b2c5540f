#include "bnncore/sign_gemm.h"

namespace bitfleet::portable {

void sign_gemm(const int8_t* g, size_t g_stride, const int32_t*, int rows, int depth, const uint64_t* s,
               size_t s_stride, int k0, int columns, uint8_t*, int32_t* out) {
  for (int r = 0; r < rows; ++r) {
    int32_t* row = out + r * kColumnBlock;
    for (int k = 0; k < kColumnBlock; ++k) row[k] = 0;
    for (int j = 0; j < depth; ++j) {
      const uint32_t signs = static_cast<uint32_t>(s[j * s_stride + k0 / 64] >> (k0 % 64));
      const int32_t value = g[r * g_stride + j];
      for (int k = 0; k < columns; ++k) row[k] += signs >> k & 1u ? -value : value;
    }
  }
}

}  // namespace bitfleet::portable
