#include "bnncore/input_gemm.h"
#include "widths_inl.h"

namespace bitfleet::portable {

namespace {

template <typename Y>
void gemm(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded, int rows,
          int segments, int width, Y* y, size_t y_stride) {
  const size_t depth = static_cast<size_t>(segments) * static_cast<size_t>(width);
  for (int r = 0; r < rows; ++r) {
    for (int p = 0; p < count; ++p) {
      int32_t sum = 0;
      for (int s = 0; s < segments; ++s) {
        const int8_t* weights = expanded + r * depth + size_t(s) * width;
        const uint8_t* bytes = u + p * u_stride + s * segment_stride;
        for (int k = 0; k < width; ++k) sum += weights[k] * (2 * int32_t{bytes[k]} - 255);
      }
      y[r * y_stride + p] = static_cast<Y>(sum);
    }
  }
}

}  // namespace

// Rows of +-1.
void input_expand(const uint64_t* w, size_t w_stride, int rows, int segments, int width, int8_t* expanded) {
  const int depth = segments * width;
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < depth; ++k) *expanded++ = w[r * w_stride + k / 64] >> (k % 64) & 1u ? -1 : 1;
  }
}

BITFLEET_DEFINE_INPUT_GEMM_WIDTHS()

void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u, size_t u_stride, uint8_t*,
                int32_t* out) {
  for (int r = 0; r < rows; ++r) {
    int32_t* row = out + r * kColumnBlock;
    for (int j = 0; j < depth; ++j) {
      const int32_t value = g[r * g_stride + j];
      for (int k = 0; k < kColumnBlock; ++k) row[k] += value * int32_t{u[j * u_stride + k]};
    }
  }
}

}  // namespace bitfleet::portable
