// std::fma is one instruction on AArch64, where these loops vectorise. On x86-64 it is a call, exact and slow: a CPU
// from before 2013 can check results, not train.
#include <cmath>
#include <cstring>

#include "bnncore/sgemm.h"

namespace bitfleet::portable {

namespace {

// Four columns at once: a check of memory, where one is compiled in, is paid once for them.
using Line = float __attribute__((vector_size(16)));
constexpr int kLines = kSgemmColumns * sizeof(float) / sizeof(Line);

inline Line multiply_add(float factor, Line row, Line sum) {
  return Line{std::fma(factor, row[0], sum[0]), std::fma(factor, row[1], sum[1]), std::fma(factor, row[2], sum[2]),
              std::fma(factor, row[3], sum[3])};
}

template <int kRows>
void multiply_tile(const float* a, size_t a_stride, const float* panel, int depth, float* c, size_t c_stride,
                   bool add) {
  Line sums[kRows][kLines] = {};
  if (add) {
    for (int i = 0; i < kRows; ++i) std::memcpy(sums[i], c + i * c_stride, sizeof(sums[i]));
  }
  for (int k = 0; k < depth; ++k) {
    Line row[kLines];
    std::memcpy(row, panel + static_cast<size_t>(k) * kSgemmColumns, sizeof(row));
    for (int i = 0; i < kRows; ++i) {
      const float factor = a[i * a_stride + static_cast<size_t>(k)];
      for (int j = 0; j < kLines; ++j) sums[i][j] = multiply_add(factor, row[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) std::memcpy(c + i * c_stride, sums[i], sizeof(sums[i]));
}

}  // namespace

void sgemm(const float* a, size_t a_stride, int rows, const float* b, int depth, int columns, float* c, size_t c_stride,
           bool add) {
  for (int j = 0; j < columns; j += kSgemmColumns) {
    const float* panel = b + static_cast<size_t>(j) * static_cast<size_t>(depth);
    int i = 0;
    for (; i + kSgemmRows <= rows; i += kSgemmRows) {
      multiply_tile<kSgemmRows>(a + i * a_stride, a_stride, panel, depth, c + i * c_stride + j, c_stride, add);
    }
    for (; i < rows; ++i)
      multiply_tile<1>(a + i * a_stride, a_stride, panel, depth, c + i * c_stride + j, c_stride, add);
  }
}

void transpose_floats(const float* source, size_t source_stride, int rows, int columns, float* target,
                      size_t target_stride) {
  for (int c = 0; c < columns; ++c) {
    for (int r = 0; r < rows; ++r) target[c * target_stride + r] = source[r * source_stride + c];
  }
}

}  // namespace bitfleet::portable
