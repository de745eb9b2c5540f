// Max pools and the gradients of what they keep, against plain loops over windows.
#include "bnncore/pool.h"

#include <functional>
#include <limits>

#include "check.h"

namespace bitfleet::test {

namespace {

// Height and width of a map, and of a window.
const int kShapes[][4] = {{2, 2, 2, 2}, {9, 9, 2, 2},  {8, 33, 2, 2},    {5, 70, 2, 2}, {7, 5, 3, 2},  {9, 134, 4, 2},
                          {6, 6, 1, 6}, {1, 12, 1, 2}, {16, 17, 16, 16}, {3, 4, 1, 1},  {4, 200, 1, 3}};

PoolShape shape_of(const int (&s)[4]) { return {s[0], s[1], s[0] / s[2], s[1] / s[3], s[2], s[3]}; }

size_t windows_of(const PoolShape& s) { return static_cast<size_t>(s.pooled_height * s.pooled_width); }

// Pixels down to the last window's row: nothing below is read.
size_t pixels_of(const PoolShape& s) { return static_cast<size_t>(s.pooled_height * s.window_height * s.width); }

int pixel_of(const PoolShape& s, int window, int element) {
  const int row = window / s.pooled_width * s.window_height + element / s.window_width;
  return row * s.width + window % s.pooled_width * s.window_width + element % s.window_width;
}

// The gradients of windows where `element_of` says.
Array<int8_t> spread(const PoolShape& s, const Array<int8_t>& pooled, const std::function<int(int)>& element_of) {
  Array<int8_t> grad(static_cast<size_t>(s.height * s.width), 1);
  for (int q = 0; q < s.pooled_height * s.pooled_width; ++q) {
    grad[static_cast<size_t>(pixel_of(s, q, element_of(q)))] = pooled[static_cast<size_t>(q)];
  }
  return grad;
}

template <typename Y>
void check_signs(const PoolKernels& kernels, Random& random) {
  for (const auto& sizes : kShapes) {
    const PoolShape shape = shape_of(sizes);
    const int elements = shape.window_height * shape.window_width;
    Array<Y> y(pixels_of(shape), 1);
    Array<int8_t> pooled(windows_of(shape), 1);
    for (int32_t from : {0, 2, 32766, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
      y.generate([&] { return random.between(from == 32766 ? 32764 : -3, from == 32766 ? 32766 : 3); });
      pooled.generate([&] { return random.between(-127, 127); });
      Array<int8_t> grad(static_cast<size_t>(shape.height * shape.width), 1);
      grad.fill(0x55);
      kernels.spread_signs_of<Y>()(y.data(), from, pooled.data(), shape, grad.data());
      const auto first_positive = [&](int window) {
        for (int i = 0; i < elements; ++i) {
          if (y[static_cast<size_t>(pixel_of(shape, window, i))] >= from) return i;
        }
        return 0;
      };
      CHECK_SAME(grad, spread(shape, pooled, first_positive),
                 text(shape.height, " x ", shape.width, ", positive from ", from));
    }
  }
}

}  // namespace

KERNEL_TEST(pool_keeps_the_largest) {
  Random random(6);
  for (const auto& sizes : kShapes) {
    const PoolShape shape = shape_of(sizes);
    Array<int16_t> y(pixels_of(shape), 1);
    for (int range : {1, 3, 32766}) {  // many equal ones, of which the first counts
      y.generate([&] { return random.between(-range, range); });
      Array<int16_t> pooled(windows_of(shape), 1), wanted = pooled, alone = pooled;
      Array<uint8_t> choices(windows_of(shape), 1), wanted_choices = choices;
      for (size_t q = 0; q < wanted.size(); ++q) {
        for (int i = 0; i < shape.window_height * shape.window_width; ++i) {
          const int16_t value = y[static_cast<size_t>(pixel_of(shape, static_cast<int>(q), i))];
          if (i > 0 && value <= wanted[q]) continue;
          wanted[q] = value;
          wanted_choices[q] = static_cast<uint8_t>(i);
        }
      }
      kernels.pool->max_pool(y.data(), shape, pooled.data(), choices.data());
      kernels.pool->max_pool(y.data(), shape, alone.data(), nullptr);
      const std::string what = text(shape.height, " x ", shape.width);
      CHECK_SAME(pooled, wanted, what);
      CHECK_SAME(choices, wanted_choices, what);
      CHECK_SAME(alone, wanted, what + " without choices");
    }
  }
}

KERNEL_TEST(pool_spreads_gradients) {
  Random random(7);
  for (const auto& sizes : kShapes) {
    const PoolShape shape = shape_of(sizes);
    Array<int8_t> pooled(windows_of(shape), 1), grad(static_cast<size_t>(shape.height * shape.width), 1);
    Array<uint8_t> choices(windows_of(shape), 1);
    pooled.generate([&] { return random.between(-127, 127); });
    choices.generate([&] { return random.between(0, shape.window_height * shape.window_width - 1); });
    grad.fill(0x55);
    kernels.pool->spread(pooled.data(), choices.data(), shape, grad.data());
    CHECK_SAME(grad, spread(shape, pooled, [&](int window) { return choices[static_cast<size_t>(window)]; }),
               text(shape.height, " x ", shape.width));
  }
}

KERNEL_TEST(pool_spreads_gradients_of_signs) {
  Random random(8);
  check_signs<int16_t>(*kernels.pool, random);
  check_signs<int32_t>(*kernels.pool, random);
}

}  // namespace bitfleet::test
