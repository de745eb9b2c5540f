// Weights in the form that dot products of four bytes read: [quads][16 rows][4] of +-1, 0 past the end of a segment or
// of the rows, then int32 [16]: 255 times each row's sum.
#pragma once

#include <algorithm>
#include <cstring>

#include "bnncore/input_gemm.h"

namespace bitfleet::loops {

static inline __attribute__((always_inline)) void expand_quads(const uint64_t* w, size_t w_stride, int rows,
                                                               int segments, int width, int8_t* expanded) {
  int32_t sums[kInputGemmRows] = {};
  for (int s = 0; s < segments; ++s) {
    for (int k = 0; k < width; k += 4, expanded += 4 * kInputGemmRows) {
      const int first = s * width + k, count = std::min(4, width - k);
      const int shift = first % 64;
      const bool crosses = shift + count > 64;
      const uint32_t valid = count == 4 ? 0x01010101u : 0x01010101u >> (8 * (4 - count));
      for (int r = 0; r < rows; ++r) {
        const uint64_t* word = w + r * w_stride + first / 64;
        uint64_t bits = word[0] >> shift;
        if (crosses) bits |= word[1] << (64 - shift);
        // Bit i to the lowest bit of byte i; then 1 - 2 bit in each byte.
        const uint32_t spread = static_cast<uint32_t>((bits & 15u) * 0x00204081u) & valid;
        const uint32_t signs = valid | spread * 0xffu;
        std::memcpy(expanded + 4 * r, &signs, sizeof(signs));
        sums[r] += count - 2 * __builtin_popcount(spread);
      }
      if (rows < kInputGemmRows) std::memset(expanded + 4 * rows, 0, static_cast<size_t>(4 * (kInputGemmRows - rows)));
    }
  }
  for (int r = 0; r < kInputGemmRows; ++r) sums[r] *= 255;
  std::memcpy(expanded, sums, sizeof(sums));
}

}  // namespace bitfleet::loops
