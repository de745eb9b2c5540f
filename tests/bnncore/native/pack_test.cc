// Packing and transposing, against plain loops.
#include "check.h"

namespace bitfleet::test {

namespace {

const int kCounts[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 257, 1000};

}  // namespace

KERNEL_TEST(pack_int8) {
  Random random(1);
  for (int count : kCounts) {
    for (size_t misalignment : {0, 1, 7}) {
      Array<int8_t> values(static_cast<size_t>(count), misalignment);
      values.generate([&] { return random.next(); });
      Array<uint64_t> words(static_cast<size_t>(words_for(count)), misalignment), wanted = words;
      words.fill(0xff);
      for (int i = 0; i < count; ++i) {
        wanted[static_cast<size_t>(i / 64)] |= uint64_t{values[static_cast<size_t>(i)] < 0} << (i % 64);
      }
      kernels.pack_int8(values.data(), count, words.data());
      CHECK_SAME(words, wanted, text(count, " values"));
    }
  }
}

KERNEL_TEST(pack_float) {
  Random random(2);
  const float edges[] = {0.0f, -0.0f, 1e-45f, -1e-45f, 1e38f, -1e38f};
  for (int count : kCounts) {
    for (size_t misalignment : {0, 1, 3}) {
      Array<float> values(static_cast<size_t>(count), misalignment);
      values.generate([&] { return random.next() % 4 == 0 ? edges[random.next() % 6] : random.real(2.0f); });
      Array<uint64_t> words(static_cast<size_t>(words_for(count)), misalignment), wanted = words;
      words.fill(0xff);
      for (int i = 0; i < count; ++i) {
        wanted[static_cast<size_t>(i / 64)] |= uint64_t{values[static_cast<size_t>(i)] < 0.0f} << (i % 64);
      }
      kernels.pack_float(values.data(), count, words.data());
      CHECK_SAME(words, wanted, text(count, " values"));
    }
  }
}

KERNEL_TEST(transpose_bytes) {
  Random random(3);
  for (int rows : {1, 2, 7, 8, 15, 16, 17, 33, 50}) {
    for (int columns : {1, 3, 8, 15, 16, 17, 31, 64, 100}) {
      const size_t source_stride = static_cast<size_t>(columns) + 3, target_stride = static_cast<size_t>(rows) + 1;
      // Nothing past the last element of either is the kernel's to touch.
      Array<int8_t> source(static_cast<size_t>(rows - 1) * source_stride + static_cast<size_t>(columns), 1);
      Array<int8_t> target(static_cast<size_t>(columns - 1) * target_stride + static_cast<size_t>(rows), 5);
      source.generate([&] { return random.next(); });
      target.fill(77);
      Array<int8_t> wanted = target;
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        for (size_t c = 0; c < static_cast<size_t>(columns); ++c) {
          wanted[c * target_stride + r] = source[r * source_stride + c];
        }
      }
      kernels.transpose_bytes(source.data(), source_stride, rows, columns, target.data(), target_stride);
      CHECK_SAME(target, wanted, text(rows, " x ", columns));
    }
  }
}

KERNEL_TEST(transpose_words) {
  Random random(4);
  for (int rows : {1, 2, 3, 4, 5, 8, 11}) {
    for (int columns : {1, 2, 3, 4, 5, 7, 8, 30}) {
      const size_t source_stride = static_cast<size_t>(columns) + 1, target_stride = static_cast<size_t>(rows) + 2;
      Array<uint64_t> source(static_cast<size_t>(rows - 1) * source_stride + static_cast<size_t>(columns), 1);
      Array<uint64_t> target(static_cast<size_t>(columns - 1) * target_stride + static_cast<size_t>(rows), 3);
      source.generate([&] { return random.next(); });
      target.fill(77);
      Array<uint64_t> wanted = target;
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        for (size_t c = 0; c < static_cast<size_t>(columns); ++c) {
          wanted[c * target_stride + r] = source[r * source_stride + c];
        }
      }
      kernels.transpose_words(source.data(), source_stride, rows, columns, target.data(), target_stride);
      CHECK_SAME(target, wanted, text(rows, " x ", columns));
    }
  }
}

KERNEL_TEST(gather_planes) {
  Random random(5);
  const PixelWindow windows[] = {{5, 7, 0, 5, 1, 0, 7, 1},  {5, 7, -1, 7, 1, -1, 9, 1},  {9, 8, -1, 5, 2, -2, 6, 2},
                                 {4, 20, 3, 1, 1, 5, 8, 1}, {1, 24, 0, 1, 1, -4, 32, 1}, {2, 3, -2, 6, 1, -3, 9, 1},
                                 {6, 6, 1, 2, 3, 1, 2, 4},  {3, 5, -1, 2, 4, 7, 3, 1},   {3, 5, 0, 2, 1, -6, 5, 1}};
  for (const PixelWindow& window : windows) {
    for (size_t words : {1, 2, 3, 4, 8, 9}) {
      const size_t pixels = static_cast<size_t>(window.height * window.width);
      const size_t rows = static_cast<size_t>(window.rows), columns = static_cast<size_t>(window.columns);
      const size_t plane_stride = rows * columns + 3;
      // Nothing outside of either is the kernel's to touch.
      Array<uint64_t> map(pixels * words, 1), planes((words - 1) * plane_stride + rows * columns, 3);
      map.generate([&] { return random.next(); });
      planes.fill(0x33);
      Array<uint64_t> wanted = planes;
      for (size_t word = 0; word < words; ++word) {
        for (int i = 0; i < window.rows; ++i) {
          for (int j = 0; j < window.columns; ++j) {
            const int row = window.row + i * window.row_step, column = window.column + j * window.column_step;
            const bool inside = row >= 0 && row < window.height && column >= 0 && column < window.width;
            const size_t pixel = static_cast<size_t>(row * window.width + column);
            wanted[word * plane_stride + static_cast<size_t>(i) * columns + static_cast<size_t>(j)] =
                inside ? map[pixel * words + word] : 0;
          }
        }
      }
      kernels.gather_planes(map.data(), words, window, planes.data(), plane_stride);
      CHECK_SAME(planes, wanted, text(window.rows, " x ", window.columns, " of ", words, " words"));
    }
  }
}

}  // namespace bitfleet::test
