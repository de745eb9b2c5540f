// SDOT, whose factors are both signed: sixteen products an instruction of u - 128, four of them summed into a lane.
// Forward the lanes are weight rows: sum w (2 u - 255) = 2 sum w (u - 128) + sum w. Backward they are columns of the
// input, and 128 sum g is added.
#if defined(__aarch64__)
#include <algorithm>
#include <cstring>

#include "../bits_neon.h"
#include "bnncore/input_gemm.h"
#include "quads_inl.h"
#include "widths_inl.h"

namespace bitfleet::neon_dotprod {

#define BITFLEET_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))

namespace {

constexpr int kAtOnce = 4;  // rows of g, or positions
constexpr int kQuadBytes = 4 * kColumnBlock;

// 16 rows by kPositions positions.
template <int kPositions, typename Y>
BITFLEET_DOTPROD void multiply(const uint8_t* u, size_t u_stride, size_t segment_stride, const int8_t* quads, int rows,
                               int segments, int width, Y* y, size_t y_stride) {
  int32x4_t total[kPositions][4];
  for (int p = 0; p < kPositions; ++p) {
    for (int v = 0; v < 4; ++v) total[p][v] = vdupq_n_s32(0);
  }
  for (int s = 0; s < segments; ++s) {
    for (int k = 0; k < width; k += 4, quads += 4 * kInputGemmRows) {
      int8x16_t weights[4];
      for (int v = 0; v < 4; ++v) weights[v] = vld1q_s8(quads + 16 * v);
      for (int p = 0; p < kPositions; ++p) {
        uint32_t four;
        std::memcpy(&four, u + p * u_stride + s * segment_stride + k, sizeof(four));
        const int8x16_t inputs = vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u));
        for (int v = 0; v < 4; ++v) total[p][v] = vdotq_s32(total[p][v], weights[v], inputs);
      }
    }
  }
  int32_t sums[kInputGemmRows], products[kInputGemmRows];
  std::memcpy(sums, quads, sizeof(sums));
  for (int p = 0; p < kPositions; ++p) {
    for (int v = 0; v < 4; ++v) vst1q_s32(products + 4 * v, total[p][v]);
    for (int r = 0; r < rows; ++r) y[r * y_stride + p] = static_cast<Y>(2 * products[r] + sums[r]);
  }
}

template <typename Y>
BITFLEET_DOTPROD void gemm(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded,
                           int rows, int segments, int width, Y* y, size_t y_stride) {
  int p = 0;
  for (; p + kAtOnce <= count; p += kAtOnce) {
    multiply<kAtOnce>(u + p * u_stride, u_stride, segment_stride, expanded, rows, segments, width, y + p, y_stride);
  }
  for (; p < count; ++p) {
    multiply<1>(u + p * u_stride, u_stride, segment_stride, expanded, rows, segments, width, y + p, y_stride);
  }
}

// kRows rows of g by 16 columns of u.
template <int kRows>
BITFLEET_DOTPROD void grad_rows(const int8_t* g, size_t g_stride, int depth, const uint8_t* columns, int32_t* out) {
  int32x4_t sums[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    int32_t all = 0;
    for (int j = 0; j < depth; ++j) all += g[r * g_stride + j];
    for (int v = 0; v < 4; ++v) {
      sums[r][v] = vaddq_s32(vld1q_s32(out + r * kColumnBlock + 4 * v), vdupq_n_s32(128 * all));
    }
  }
  const auto add_quad = [&](const int8_t* quad, size_t stride) BITFLEET_DOTPROD {
    int8x16_t u[4];
    for (int v = 0; v < 4; ++v) u[v] = vreinterpretq_s8_u8(vld1q_u8(columns + 16 * v));
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, quad + r * stride, sizeof(four));
      const int8x16_t factors = vreinterpretq_s8_s32(vdupq_n_s32(four));
      for (int v = 0; v < 4; ++v) sums[r][v] = vdotq_s32(sums[r][v], u[v], factors);
    }
    columns += kQuadBytes;
  };
  const int whole = depth / 4 * 4;
  for (int j = 0; j < whole; j += 4) add_quad(g + j, g_stride);
  if (whole < depth) {
    int8_t last[kRows][4] = {};
    for (int r = 0; r < kRows; ++r) std::copy_n(g + r * g_stride + whole, depth - whole, last[r]);
    add_quad(last[0], sizeof(last[0]));
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 4; ++v) vst1q_s32(out + r * kColumnBlock + 4 * v, sums[r][v]);
  }
}

}  // namespace

void input_expand(const uint64_t* w, size_t w_stride, int rows, int segments, int width, int8_t* expanded) {
  loops::expand_quads(w, w_stride, rows, segments, width, expanded);
  int32_t sums[kInputGemmRows];
  int8_t* end = expanded + input_expanded_bytes(segments, width) - sizeof(sums);
  std::memcpy(sums, end, sizeof(sums));
  for (int32_t& sum : sums) sum /= 255;
  std::memcpy(end, sums, sizeof(sums));
}

BITFLEET_DEFINE_INPUT_GEMM_WIDTHS(BITFLEET_DOTPROD)

BITFLEET_DOTPROD void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u,
                                 size_t u_stride, uint8_t* expanded, int32_t* out) {
  // Lane k of quad q holds u - 128 at column k of rows 4 q .. 4 q + 3; rows past the depth do not matter.
  for (int j = 0; j < depth; j += 4) {
    for (int k = 0; k < kColumnBlock; k += 16) {
      uint8x16x4_t quad;
      for (int i = 0; i < 4; ++i) {
        const int row = std::min(j + i, depth - 1);
        quad.val[i] = veorq_u8(vld1q_u8(u + row * u_stride + k), vdupq_n_u8(0x80));
      }
      vst4q_u8(expanded + size_t(j) * kColumnBlock + 4 * k, quad);
    }
  }
  for (int k = 0; k < kColumnBlock; k += 16) {
    int r = 0;
    for (; r + kAtOnce <= rows; r += kAtOnce) {
      grad_rows<kAtOnce>(g + r * g_stride, g_stride, depth, expanded + 4 * k, out + r * kColumnBlock + k);
    }
    for (; r < rows; ++r) {
      grad_rows<1>(g + r * g_stride, g_stride, depth, expanded + 4 * k, out + r * kColumnBlock + k);
    }
  }
}

}  // namespace bitfleet::neon_dotprod
#endif
