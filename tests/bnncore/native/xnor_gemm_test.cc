// Binary products on panels, against plain sums of signs.
#include "bnncore/xnor_gemm.h"

#include "check.h"

namespace bitfleet::test {

namespace {

struct Lines {
  int width, pitch;
};

// `kind` chooses the signs: random, or those of the ends of the range. Words lie in an order of their own.
void check_product(const Kernels& kernels, int count, int rows, int depth, int kind, Lines lines, bool padded,
                   Random& random) {
  const size_t words = static_cast<size_t>(words_for(depth)), y_stride = static_cast<size_t>(count) + 3;
  const auto place = [&](int p) { return static_cast<size_t>(p / lines.width * lines.pitch + p % lines.width); };
  const size_t plane = place((count - 1) / kPanelLanes * kPanelLanes) + kPanelLanes;
  const size_t w_stride = words + 1, row_count = static_cast<size_t>(rows);
  Array<uint64_t> x(words * plane, 1), w((row_count - 1) * w_stride + words, 1);
  Array<int16_t> y((row_count - 1) * y_stride + static_cast<size_t>(count), 1), excess(y.size(), 1);
  Array<int32_t> offsets(words, 1);
  x.generate([&] { return random.next(); });  // between the lines and past `count` too, where nothing is promised
  for (size_t i = 0; i < words; ++i) {
    const int used = depth - static_cast<int>(i) * kWordBits;
    const uint64_t mask = used >= kWordBits ? ~uint64_t{0} : (uint64_t{1} << used) - 1;
    offsets[i] = static_cast<int32_t>((words - 1 - i) * plane);
    for (int p = 0; p < count; ++p) x[static_cast<size_t>(offsets[i]) + place(p)] &= kind == 0 ? mask : 0;
    for (size_t r = 0; r < row_count; ++r) {
      w[r * w_stride + i] = mask & (kind == 0 ? random.next() : kind == 1 ? ~uint64_t{0} : 0);
    }
  }
  y.fill(0x55);
  Array<int16_t> wanted = y;
  for (size_t r = 0; r < row_count; ++r) {
    for (int p = 0; p < count; ++p) {
      const size_t at = r * y_stride + static_cast<size_t>(p);
      int product = depth;
      for (size_t i = 0; i < words; ++i) {
        product -= 2 * std::popcount(x[static_cast<size_t>(offsets[i]) + place(p)] ^ w[r * w_stride + i]);
      }
      // What is left is a product too.
      if (padded) excess[at] = static_cast<int16_t>(product - random.between(-depth, depth));
      wanted[at] = static_cast<int16_t>(product - excess[at]);
    }
  }
  kernels.xnor_gemm({x.data(), offsets.data(), lines.width, lines.pitch}, count, w.data(), w_stride, rows,
                    static_cast<int>(words), depth, padded ? excess.data() : nullptr, y_stride, y.data(), y_stride);
  CHECK_SAME(y, wanted,
             text(count, " positions in lines of ", lines.width, ", ", rows, " rows, depth ", depth, ", kind ", kind,
                  padded ? ", padded" : ""));
}

}  // namespace

KERNEL_TEST(xnor_gemm) {
  Random random(1);
  for (int count : {1, 2, 7, 8, 9, 16, 31, 33, 70}) {
    for (int rows : {1, 2, 3, 4, 5, 7, 8, 9, 13, 16}) {
      for (int depth : {1, 63, 64, 65, 300, 64 * 31, 64 * 31 + 1, 64 * 62 + 5}) {
        check_product(kernels, count, rows, depth, 0, {count, count}, rows % 2 == 0, random);
      }
    }
  }
  for (const Lines lines : {Lines{8, 8}, Lines{8, 11}, Lines{24, 26}, Lines{5, 5}, Lines{40, 60}}) {
    for (int count : {5, 8, 24, 35, 64, 90, 120}) {
      for (bool padded : {false, true}) check_product(kernels, count, 6, 200, 0, lines, padded, random);
    }
  }
  for (int kind : {0, 1, 2}) check_product(kernels, 9, 5, kXnorDepth, kind, {9, 9}, false, random);
}

}  // namespace bitfleet::test
