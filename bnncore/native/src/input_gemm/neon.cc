// Forward, few weights a row: MLA in 16 bits, which hold 128 * 255, of weights +-1 of eight rows by one input. More of
// them: sum w u = U - 2 P, with U = sum u and P the sum of those u whose weight is -1: AND with a mask of bytes, UADALP
// to 16 bits, two instructions for 16 products. 128 sums of two bytes stay below 65,536. Gradient: SMLAL of u in 16
// bits, four products an instruction.
#if defined(__aarch64__)
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../bits_neon.h"
#include "bnncore/input_gemm.h"
#include "widths_inl.h"

namespace bitfleet::neon {

namespace {

constexpr int kFewWeights = 128;  // 128 * 255 = 32,640
constexpr int kSteps = 128;       // 128 * 2 * 255 = 65,280
constexpr int kAtOnce = 4;        // rows, or positions

int padded_width(int width) { return (width + 3) / 4 * 4; }

// Bytes of a row's weights, of which 16 rows stand in front of int32 [16], the sums of each.
size_t row_bytes(int segments, int width) {
  return static_cast<size_t>(segments) * static_cast<size_t>(padded_width(width));
}

bool is_set(const uint64_t* w, int k) { return (w[k / 64] >> (k % 64) & 1u) != 0; }

// Sixteen bytes of +-1 an input, one a row; 0 past the rows and in the padding.
void expand_by_input(const uint64_t* w, size_t w_stride, int rows, int segments, int width, int8_t* expanded) {
  std::memset(expanded, 0, kInputGemmRows * row_bytes(segments, width));
  for (int s = 0; s < segments; ++s, expanded += kInputGemmRows * padded_width(width)) {
    for (int k = 0; k < width; ++k) {
      for (int r = 0; r < rows; ++r) {
        expanded[k * kInputGemmRows + r] = is_set(w + r * w_stride, s * width + k) ? -1 : 1;
      }
    }
  }
}

// Rows of masks, 0xff where the weight is -1; segments are padded to four.
void expand_by_row(const uint64_t* w, size_t w_stride, int rows, int segments, int width, int8_t* expanded) {
  for (int r = 0; r < rows; ++r, w += w_stride) {
    for (int s = 0; s < segments; ++s, expanded += padded_width(width)) {
      for (int k = 0; k < width; ++k) expanded[k] = is_set(w, s * width + k) ? -1 : 0;
    }
  }
}

// 16 rows by kPositions positions.
template <int kPositions, typename Y>
void multiply_few(const uint8_t* u, size_t u_stride, size_t segment_stride, const int8_t* weights, const int32_t* sums,
                  int rows, int segments, int width, Y* y, size_t y_stride) {
  int16x8_t total[kPositions][2];
  for (int p = 0; p < kPositions; ++p) total[p][0] = total[p][1] = vdupq_n_s16(0);
  for (int s = 0; s < segments; ++s) {
    for (int k = 0; k < width; k += 4, weights += 4 * kInputGemmRows) {
      int16x4_t inputs[kPositions];
      for (int p = 0; p < kPositions; ++p) {
        uint32_t four;
        std::memcpy(&four, u + p * u_stride + s * segment_stride + k, sizeof(four));
        inputs[p] = vget_low_s16(vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(four))));
      }
      const auto add_input = [&](int8x16_t w, auto lane) {
        const int16x8_t low = vmovl_s8(vget_low_s8(w)), high = vmovl_high_s8(w);
        for (int p = 0; p < kPositions; ++p) {
          total[p][0] = vmlaq_lane_s16(total[p][0], low, inputs[p], lane);
          total[p][1] = vmlaq_lane_s16(total[p][1], high, inputs[p], lane);
        }
      };
      add_input(vld1q_s8(weights), std::integral_constant<int, 0>());
      add_input(vld1q_s8(weights + 16), std::integral_constant<int, 1>());
      add_input(vld1q_s8(weights + 32), std::integral_constant<int, 2>());
      add_input(vld1q_s8(weights + 48), std::integral_constant<int, 3>());
    }
  }
  for (int p = 0; p < kPositions; ++p) {
    int16_t products[kInputGemmRows];
    vst1q_s16(products, total[p][0]);
    vst1q_s16(products + 8, total[p][1]);
    for (int r = 0; r < rows; ++r) y[r * y_stride + p] = static_cast<Y>(2 * products[r] - 255 * sums[r]);
  }
}

// kRows rows of masks by one position: the sum of all its inputs less twice that of those under the masks.
template <int kRows>
void multiply_many(const uint8_t* u, size_t segment_stride, const uint8_t* masks, size_t mask_stride, int segments,
                   int width, int32_t* products) {
  // The last vector of a segment, whose other masks belong to the next.
  uint8_t lanes[16] = {};
  std::fill_n(lanes, (width - 1) % 16 + 1, uint8_t{0xff});
  const uint8x16_t valid = vld1q_u8(lanes);
  uint32x4_t whole = vdupq_n_u32(0), total[kRows];
  uint16x8_t sum[kRows];
  for (int r = 0; r < kRows; ++r) {
    total[r] = vdupq_n_u32(0);
    sum[r] = vdupq_n_u16(0);
  }
  int pending = 0;
  const auto flush = [&] {
    for (int r = 0; r < kRows; ++r) {
      total[r] = vpadalq_u16(total[r], sum[r]);
      sum[r] = vdupq_n_u16(0);
    }
    pending = 0;
  };
  for (int s = 0; s < segments; ++s, u += segment_stride, masks += padded_width(width)) {
    for (int k = 0; k < width; k += 16) {
      uint8x16_t bytes = vld1q_u8(u + k);
      if (k + 16 > width) bytes = vandq_u8(bytes, valid);
      whole = vpadalq_u16(whole, vpaddlq_u8(bytes));
      for (int r = 0; r < kRows; ++r) {
        sum[r] = vpadalq_u8(sum[r], vandq_u8(bytes, vld1q_u8(masks + r * mask_stride + k)));
      }
      if (++pending == kSteps) flush();
    }
  }
  flush();
  const int32_t all = static_cast<int32_t>(vaddvq_u32(whole));
  for (int r = 0; r < kRows; ++r) products[r] = all - 2 * static_cast<int32_t>(vaddvq_u32(total[r]));
}

template <typename Y>
void gemm(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded, int rows,
          int segments, int width, Y* y, size_t y_stride) {
  const size_t stride = row_bytes(segments, width);
  int32_t sums[kInputGemmRows];
  std::memcpy(sums, expanded + kInputGemmRows * stride, sizeof(sums));
  int p = 0;
  if (segments * width <= kFewWeights) {
    for (; p + kAtOnce <= count; p += kAtOnce) {
      multiply_few<kAtOnce>(u + p * u_stride, u_stride, segment_stride, expanded, sums, rows, segments, width, y + p,
                            y_stride);
    }
    for (; p < count; ++p) {
      multiply_few<1>(u + p * u_stride, u_stride, segment_stride, expanded, sums, rows, segments, width, y + p,
                      y_stride);
    }
    return;
  }
  const uint8_t* masks = reinterpret_cast<const uint8_t*>(expanded);
  for (; p < count; ++p) {
    const uint8_t* position = u + p * u_stride;
    int32_t products[kInputGemmRows];
    int r = 0;
    for (; r + kAtOnce <= rows; r += kAtOnce) {
      multiply_many<kAtOnce>(position, segment_stride, masks + r * stride, stride, segments, width, products + r);
    }
    for (; r < rows; ++r) {
      multiply_many<1>(position, segment_stride, masks + r * stride, stride, segments, width, products + r);
    }
    for (r = 0; r < rows; ++r) y[r * y_stride + p] = static_cast<Y>(2 * products[r] - 255 * sums[r]);
  }
}

// kRows rows of g by 16 columns of u.
template <int kRows>
void grad_rows(const int8_t* g, size_t g_stride, int depth, const uint8_t* u, size_t u_stride, int32_t* out) {
  int32x4_t sums[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 4; ++v) sums[r][v] = vld1q_s32(out + r * kColumnBlock + 4 * v);
  }
  for (int j = 0; j < depth; ++j) {
    const uint8x16_t bytes = vld1q_u8(u + j * u_stride);
    const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
    const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(bytes));
    for (int r = 0; r < kRows; ++r) {
      const int16x8_t factor = vdupq_n_s16(g[r * g_stride + j]);
      sums[r][0] = vmlal_s16(sums[r][0], vget_low_s16(low), vget_low_s16(factor));
      sums[r][1] = vmlal_high_s16(sums[r][1], low, factor);
      sums[r][2] = vmlal_s16(sums[r][2], vget_low_s16(high), vget_low_s16(factor));
      sums[r][3] = vmlal_high_s16(sums[r][3], high, factor);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 4; ++v) vst1q_s32(out + r * kColumnBlock + 4 * v, sums[r][v]);
  }
}

}  // namespace

void input_expand(const uint64_t* w, size_t w_stride, int rows, int segments, int width, int8_t* expanded) {
  const auto expand = segments * width <= kFewWeights ? expand_by_input : expand_by_row;
  expand(w, w_stride, rows, segments, width, expanded);
  int32_t sums[kInputGemmRows] = {};
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < segments * width; ++k) sums[r] += is_set(w + r * w_stride, k) ? -1 : 1;
  }
  std::memcpy(expanded + kInputGemmRows * row_bytes(segments, width), sums, sizeof(sums));
}

BITFLEET_DEFINE_INPUT_GEMM_WIDTHS()

void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride, uint8_t*,
                int32_t* out) {
  for (int k = 0; k < kColumnBlock; k += 16) {
    int r = 0;
    for (; r + kAtOnce <= rows; r += kAtOnce) {
      grad_rows<kAtOnce>(g + r * g_stride, g_stride, depth, u + k, u_stride, out + r * kColumnBlock + k);
    }
    for (; r < rows; ++r) grad_rows<1>(g + r * g_stride, g_stride, depth, u + k, u_stride, out + r * kColumnBlock + k);
  }
}

}  // namespace bitfleet::neon
#endif
