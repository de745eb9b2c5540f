#include "bnncore/input_gemm.h"

namespace bitfleet::portable {

namespace {

template <typename Y>
void gemm(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride, int rows, int depth,
          int8_t* expanded, Y* y, size_t y_stride) {
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < depth; ++k) expanded[k] = w[r * w_stride + k / 64] >> (k % 64) & 1u ? -1 : 1;
    for (int b = 0; b < batch; ++b) {
      int32_t sum = 0;
      for (int k = 0; k < depth; ++k) sum += expanded[k] * (2 * int32_t{u[b * u_stride + k]} - 255);
      y[r * y_stride + b] = static_cast<Y>(sum);
    }
  }
}

}  // namespace

void input_gemm_narrow(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride, int rows,
                       int depth, int8_t* expanded, int16_t* y, size_t y_stride) {
  gemm(u, u_stride, batch, w, w_stride, rows, depth, expanded, y, y_stride);
}

void input_gemm_wide(const uint8_t* u, size_t u_stride, int batch, const uint64_t* w, size_t w_stride, int rows,
                     int depth, int8_t* expanded, int32_t* y, size_t y_stride) {
  gemm(u, u_stride, batch, w, w_stride, rows, depth, expanded, y, y_stride);
}

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
