// float32 products, against one chain of fused multiply-adds an element.
#include <cmath>

#include "check.h"

namespace bitfleet::test {

KERNEL_TEST(sgemm) {
  Random random(1);
  for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 25}) {
    for (int columns : {1, 15, 16, 17, 40, 64}) {
      for (int depth : {1, 2, 9, 31}) {
        for (bool add : {false, true}) {
          const size_t panels = static_cast<size_t>(columns + kSgemmColumns - 1) / kSgemmColumns;
          const size_t a_stride = static_cast<size_t>(depth) + 1, c_stride = panels * kSgemmColumns + 3;
          Array<float> a(static_cast<size_t>(rows - 1) * a_stride + static_cast<size_t>(depth), 1);
          Array<float> b(panels * static_cast<size_t>(depth) * kSgemmColumns);
          Array<float> c(static_cast<size_t>(rows - 1) * c_stride + panels * kSgemmColumns, 1);
          a.generate([&] { return random.real(2.0f); });
          c.generate([&] { return random.real(2.0f); });
          const auto panel_element = [&](size_t k, size_t j) -> float& {
            return b[(j / kSgemmColumns * static_cast<size_t>(depth) + k) * kSgemmColumns + j % kSgemmColumns];
          };
          for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
            for (size_t j = 0; j < static_cast<size_t>(columns); ++j) panel_element(k, j) = random.real(2.0f);
          }
          Array<float> wanted = c;
          for (size_t i = 0; i < static_cast<size_t>(rows); ++i) {
            for (size_t j = 0; j < panels * kSgemmColumns; ++j) {
              float sum = add ? c[i * c_stride + j] : 0.0f;
              for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
                sum = std::fma(a[i * a_stride + k], panel_element(k, j), sum);
              }
              wanted[i * c_stride + j] = sum;
            }
          }
          kernels.floats->sgemm(a.data(), a_stride, rows, b.data(), depth, columns, c.data(), c_stride, add);
          CHECK_SAME(c, wanted, text(rows, " x ", columns, " x ", depth));
        }
      }
    }
  }
}

KERNEL_TEST(transpose_floats) {
  Random random(2);
  for (int rows : {1, 3, 4, 7, 8, 9, 17}) {
    for (int columns : {1, 4, 5, 8, 15, 33}) {
      const size_t source_stride = static_cast<size_t>(columns) + 1, target_stride = static_cast<size_t>(rows) + 2;
      Array<float> source(static_cast<size_t>(rows - 1) * source_stride + static_cast<size_t>(columns), 1);
      Array<float> target(static_cast<size_t>(columns - 1) * target_stride + static_cast<size_t>(rows), 3);
      source.generate([&] { return random.real(2.0f); });
      target.fill(77);
      Array<float> wanted = target;
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        for (size_t c = 0; c < static_cast<size_t>(columns); ++c) {
          wanted[c * target_stride + r] = source[r * source_stride + c];
        }
      }
      kernels.floats->transpose(source.data(), source_stride, rows, columns, target.data(), target_stride);
      CHECK_SAME(target, wanted, text(rows, " x ", columns));
    }
  }
}

}  // namespace bitfleet::test
