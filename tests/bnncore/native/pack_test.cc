// Packing and transposing, against plain loops.
#include "check.h"
#include "networks.h"

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

KERNEL_TEST(gather_panel) {
  Random random(5);
  const BlockSpec maps[] = {
      conv(5, 7, 64, 1, {3, 3, 1, true}), conv(5, 7, 64, 1, {3, 3}),           conv(9, 8, 64, 1, {3, 3, 2, true}),
      conv(4, 20, 64, 1, {2, 5, 3}),      conv(1, 24, 64, 1, {1, 9, 1, true}), conv(2, 3, 64, 1, {5, 7, 1, true}),
      conv(6, 6, 64, 1, {1, 1})};
  for (const BlockSpec& spec : maps) {
    for (size_t words : {1, 2, 3}) {
      const size_t pixels = static_cast<size_t>(spec.in_positions()), taps = static_cast<size_t>(spec.taps());
      Array<uint64_t> planes(words * pixels + kPanelLanes, 1);
      planes.generate([&] { return random.next(); });
      for (int first : {0, 1, 8}) {
        for (int count = spec.conv_positions() - first; count > 0; count -= 5) {
          const size_t stride = round_up(static_cast<size_t>(count), kPanelLanes) + kPanelLanes;
          Array<uint64_t> panel(taps * words * stride, 1);
          panel.fill(0x33);
          kernels.gather_panel(spec, planes.data(), words, first, count, panel.data(), stride);
          panel.check_guards(__FILE__, __LINE__);
          for (size_t tap = 0; tap < taps; ++tap) {
            for (size_t word = 0; word < words; ++word) {
              for (int i = 0; i < count; ++i) {
                const int position = first + i, tap_row = static_cast<int>(tap) / spec.kernel_width;
                const int row = position / spec.conv_width * spec.stride + tap_row - spec.pad_height;
                const int column = position % spec.conv_width * spec.stride +
                                   static_cast<int>(tap) % spec.kernel_width - spec.pad_width;
                const bool inside = row >= 0 && row < spec.in_height && column >= 0 && column < spec.in_width;
                const size_t pixel = static_cast<size_t>(row * spec.in_width + column);
                CHECK_EQUAL(panel[(tap * words + word) * stride + static_cast<size_t>(i)],
                            inside ? planes[word * pixels + pixel] : uint64_t{0});
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace bitfleet::test
