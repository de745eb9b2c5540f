// The first layer's products with 8-bit inputs, against plain sums.
#include "bnncore/input_gemm.h"

#include <limits>

#include "check.h"

namespace bitfleet::test {

namespace {

constexpr size_t kReadPast = 64;  // bytes past the last row that a kernel may read

struct Shape {
  int rows, segments, width;
  size_t u_stride, segment_stride;
};

template <typename Y>
void check_product(const Kernels& kernels, const Shape& s, int count, int kind, Random& random) {
  const int depth = s.segments * s.width;
  const size_t y_stride = static_cast<size_t>(count) + 2, words = static_cast<size_t>(words_for(depth));
  const size_t row_count = static_cast<size_t>(s.rows), w_stride = words + 1;
  Array<uint8_t> u(static_cast<size_t>(count - 1) * s.u_stride +
                       static_cast<size_t>(s.segments - 1) * s.segment_stride + static_cast<size_t>(s.width) +
                       kReadPast,
                   3);
  Array<uint64_t> w((row_count - 1) * w_stride + words, 1);
  Array<int8_t> expanded(input_expanded_bytes(s.segments, s.width));
  Array<Y> y((row_count - 1) * y_stride + static_cast<size_t>(count), 1);
  u.generate([&] { return kind == 0 ? random.next() : 255; });
  if (kind != 1) random_signs(random, w, s.rows, depth, w_stride);
  if (kind == 2) {  // the largest sums of either sign
    for (size_t r = 0; r < row_count; ++r) {
      for (size_t k = 0; k < static_cast<size_t>(depth); ++k) w[r * w_stride + k / 64] |= uint64_t{1} << (k % 64);
    }
  }
  expanded.fill(0x77);
  y.fill(0x55);
  Array<Y> wanted = y;
  for (size_t r = 0; r < row_count; ++r) {
    for (size_t p = 0; p < static_cast<size_t>(count); ++p) {
      int32_t sum = 0;
      for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
        const size_t segment = k / static_cast<size_t>(s.width), at = k % static_cast<size_t>(s.width);
        const int32_t x = 2 * u[p * s.u_stride + segment * s.segment_stride + at] - 255;
        sum += (w[r * w_stride + k / 64] >> (k % 64) & 1) != 0 ? -x : x;
      }
      wanted[r * y_stride + p] = static_cast<Y>(sum);
    }
  }
  kernels.input_expand(w.data(), w_stride, s.rows, s.segments, s.width, expanded.data());
  kernels.input_gemm_of<Y>()(u.data(), s.u_stride, s.segment_stride, count, expanded.data(), s.rows, s.segments,
                             s.width, y.data(), y_stride);
  expanded.check_guards(__FILE__, __LINE__);
  CHECK_SAME(y, wanted,
             text(count, " positions, ", s.rows, " rows, ", s.segments, " x ", s.width, " inputs, kind ", kind));
}

void check_both_widths(const Kernels& kernels, const Shape& shape, int count, Random& random) {
  for (int kind : {0, 1, 2}) {
    check_product<int32_t>(kernels, shape, count, kind, random);
    if (255 * shape.segments * shape.width <= std::numeric_limits<int16_t>::max()) {
      check_product<int16_t>(kernels, shape, count, kind, random);
    }
  }
}

}  // namespace

KERNEL_TEST(input_gemm_of_rows) {
  Random random(1);
  for (int depth : {1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300, 2047, 2048, 2049, 4200}) {
    for (int count : {1, 2, 3, 4, 5, 9, 16, 17, 36}) {
      for (int rows : {1, 2, 3, 4, 5, 15, 16}) {
        if (depth > 300 && count * rows > 40) continue;
        const size_t stride = static_cast<size_t>(depth) + 1;
        check_both_widths(kernels, {rows, 1, depth, stride, 0}, count, random);
      }
    }
  }
}

// Positions overlap, as those of a convolution do.
KERNEL_TEST(input_gemm_of_maps) {
  Random random(2);
  for (int segments : {2, 3, 5, 7}) {
    for (int width : {1, 2, 3, 4, 5, 9, 15, 16, 17, 45, 64, 65}) {
      for (int count : {1, 4, 5, 19}) {
        for (int rows : {1, 4, 7, 16}) {
          check_both_widths(kernels, {rows, segments, width, 3, 70}, count, random);
        }
      }
    }
  }
}

KERNEL_TEST(input_grad) {
  Random random(2);
  for (int depth : {1, 2, 3, 4, 5, 7, 8, 29, 30, 31, kInputGradDepth}) {
    for (int rows : {1, 2, 3, 4, 5, 7, 8, 9, 13}) {
      for (int kind : {0, 1, 2}) {
        const size_t size = static_cast<size_t>(depth), g_stride = size + 2, u_stride = 75;
        const size_t row_count = static_cast<size_t>(rows);
        Array<int8_t> g((row_count - 1) * g_stride + size, 1);
        Array<uint8_t> u((size - 1) * u_stride + kColumnBlock + kReadPast, 5), expanded(kInputGradScratch);
        Array<int32_t> out(row_count * kColumnBlock, 1);
        g.generate([&] { return kind == 0 ? random.between(-127, 127) : kind == 1 ? 127 : -127; });
        u.generate([&] { return kind == 0 ? random.next() : 255; });
        out.generate([&] { return random.between(-1000000, 1000000); });
        Array<int32_t> wanted = out;
        for (size_t r = 0; r < row_count; ++r) {
          for (size_t k = 0; k < kColumnBlock; ++k) {
            for (size_t j = 0; j < size; ++j) {
              wanted[r * kColumnBlock + k] += int32_t{g[r * g_stride + j]} * u[j * u_stride + k];
            }
          }
        }
        kernels.input_grad(g.data(), g_stride, rows, depth, u.data(), u_stride, expanded.data(), out.data());
        expanded.check_guards(__FILE__, __LINE__);
        CHECK_SAME(out, wanted, text(rows, " rows of ", depth, ", kind ", kind));
      }
    }
  }
}

}  // namespace bitfleet::test
