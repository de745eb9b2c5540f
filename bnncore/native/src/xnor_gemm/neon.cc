// CNT counts the bits of sixteen bytes, two positions to a vector: three instructions for 128 products. A byte's count
// is at most 8, so 31 words are added as bytes before UADALP widens them.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <algorithm>

#include "bnncore/xnor_gemm.h"
#include "rows_inl.h"

namespace bitfleet::neon {

namespace {

constexpr int kBytesHold = 31;  // 31 * 8 = 248
constexpr int kVectors = 4;     // of two positions

// kRows rows by 8 positions, of which `some` are written.
template <int kRows>
void rows_by_8(const uint64_t* x, const int32_t* offsets, int some, const uint64_t* w, size_t w_stride, int words,
               int depth, const int16_t* excess, size_t excess_stride, int16_t* y, size_t y_stride) {
  uint16x8_t total[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) total[r][v] = vdupq_n_u16(0);
  }
  for (int start = 0; start < words; start += kBytesHold) {
    const int end = std::min(words, start + kBytesHold);
    uint8x16_t bytes[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) bytes[r][v] = vdupq_n_u8(0);
    }
    for (int i = start; i < end; ++i) {
      uint64x2_t column[kVectors];
      for (int v = 0; v < kVectors; ++v) column[v] = vld1q_u64(x + offsets[i] + 2 * v);
      for (int r = 0; r < kRows; ++r) {
        const uint64x2_t word = vld1q_dup_u64(w + r * w_stride + i);
        for (int v = 0; v < kVectors; ++v) {
          bytes[r][v] = vaddq_u8(bytes[r][v], vcntq_u8(vreinterpretq_u8_u64(veorq_u64(column[v], word))));
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) total[r][v] = vpadalq_u8(total[r][v], bytes[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r, y += y_stride) {
    const uint16x8_t unequal = vpaddq_u16(vpaddq_u16(total[r][0], total[r][1]), vpaddq_u16(total[r][2], total[r][3]));
    int16x8_t products =
        vsubq_s16(vdupq_n_s16(static_cast<int16_t>(depth)), vreinterpretq_s16_u16(vshlq_n_u16(unequal, 1)));
    int16_t all[8] = {};
    if (excess != nullptr) {
      const int16_t* subtracted = excess + r * excess_stride;
      if (some < 8) {
        std::copy_n(subtracted, some, all);
        subtracted = all;
      }
      products = vsubq_s16(products, vld1q_s16(subtracted));
    }
    if (some == 8) {
      vst1q_s16(y, products);
    } else {
      vst1q_s16(all, products);
      std::copy_n(all, some, y);
    }
  }
}

}  // namespace

void xnor_gemm(const XnorPanel& x, int count, const uint64_t* w, size_t w_stride, int rows, int words, int depth,
               const int16_t* excess, size_t excess_stride, int16_t* y, size_t y_stride) {
  loops::by_eight(rows_by_8<4>, rows_by_8<1>, x, count, w, w_stride, rows, words, depth, excess, excess_stride, y,
                  y_stride);
}

}  // namespace bitfleet::neon
#endif
