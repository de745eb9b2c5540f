// One byte a bit, and rows of g as they are.
#include <cstring>

#include "bnncore/sign_gemm.h"

namespace bitfleet::portable {

void sign_expand_bits(const uint64_t* bits, int depth, uint8_t* expanded) {
  for (int j = 0; j < depth; ++j) {
    for (int k = 0; k < kColumnBlock; ++k) expanded[j * kColumnBlock + k] = bits[j] >> k & 1u;
  }
}

void sign_expand_rows(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded) {
  for (int r = 0; r < rows; ++r) {
    std::memcpy(expanded + r * sign_row_bytes(depth), g + r * g_stride, static_cast<size_t>(depth));
  }
}

void sign_accumulate(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks, int32_t* out,
                     size_t out_stride, size_t block_stride, bool adds) {
  for (int b = 0; b < blocks; ++b, bits += sign_bits_bytes(depth), out += block_stride) {
    for (int r = 0; r < row_count; ++r) {
      const int8_t* g = reinterpret_cast<const int8_t*>(rows + r * sign_row_bytes(depth));
      int16_t sums[kColumnBlock] = {};
      for (int j = 0; j < depth; ++j) {
        const int16_t value = g[j];
        for (int k = 0; k < kColumnBlock; ++k) sums[k] += static_cast<int16_t>(value * bits[j * kColumnBlock + k]);
      }
      int32_t* target = out + r * out_stride;
      for (int k = 0; k < kColumnBlock; ++k) target[k] = (adds ? target[k] : 0) + sums[k];
    }
  }
}

}  // namespace bitfleet::portable
