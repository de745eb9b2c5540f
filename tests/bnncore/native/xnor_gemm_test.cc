// Binary products on panels, against plain sums of signs.
#include "bnncore/xnor_gemm.h"

#include "check.h"

namespace bitfleet::test {

namespace {

void check_product(const Kernels& kernels, int count, int rows, int depth, int kind, Random& random) {
  const size_t words = static_cast<size_t>(words_for(depth));
  const size_t x_stride = round_up(static_cast<size_t>(count), kPanelLanes), y_stride = static_cast<size_t>(count) + 3;
  const size_t w_stride = words + 1, row_count = static_cast<size_t>(rows);
  Array<uint64_t> x(words * x_stride), w((row_count - 1) * w_stride + words, 1);
  Array<int16_t> y((row_count - 1) * y_stride + static_cast<size_t>(count), 1);
  x.generate([&] { return random.next(); });  // past `count` too, where nothing is promised
  for (size_t i = 0; i < words; ++i) {
    const int used = depth - static_cast<int>(i) * kWordBits;
    const uint64_t mask = used >= kWordBits ? ~uint64_t{0} : (uint64_t{1} << used) - 1;
    for (size_t p = 0; p < static_cast<size_t>(count); ++p) {
      x[i * x_stride + p] &= kind == 0 ? mask : 0;
    }
    for (size_t r = 0; r < row_count; ++r) {
      w[r * w_stride + i] = mask & (kind == 0 ? random.next() : kind == 1 ? ~uint64_t{0} : 0);  // the ends of the range
    }
  }
  y.fill(0x55);
  Array<int16_t> wanted = y;
  for (size_t r = 0; r < row_count; ++r) {
    for (size_t p = 0; p < static_cast<size_t>(count); ++p) {
      int unequal = 0;
      for (size_t i = 0; i < words; ++i) unequal += std::popcount(x[i * x_stride + p] ^ w[r * w_stride + i]);
      wanted[r * y_stride + p] = static_cast<int16_t>(depth - 2 * unequal);
    }
  }
  kernels.xnor_gemm(x.data(), x_stride, count, w.data(), w_stride, rows, static_cast<int>(words), depth, y.data(),
                    y_stride);
  CHECK_SAME(y, wanted, text(count, " positions, ", rows, " rows, depth ", depth, ", kind ", kind));
}

}  // namespace

KERNEL_TEST(xnor_gemm) {
  Random random(1);
  for (int count : {1, 2, 7, 8, 9, 16, 31, 33, 70}) {
    for (int rows : {1, 2, 3, 4, 5, 7, 8, 9, 13, 16}) {
      for (int depth : {1, 63, 64, 65, 300, 64 * 31, 64 * 31 + 1, 64 * 62 + 5}) {
        check_product(kernels, count, rows, depth, 0, random);
      }
    }
  }
  for (int kind : {0, 1, 2}) check_product(kernels, 9, 5, kXnorDepth, kind, random);
}

}  // namespace bitfleet::test
