// Fixed point: every instruction set against the portable loops, and those against plain sums.
#include "bnncore/fixed_point.h"

#include <cmath>

#include "check.h"

namespace bitfleet::test {

namespace {

const int kCounts[] = {1, 2, 15, 16, 17, 31, 63, 64, 65, 112, 130, 257, 600};

}  // namespace

KERNEL_TEST(fixed_point_multiply) {
  Random random(1);
  for (int count : kCounts) {
    for (int terms : {1, 2, 9, 30}) {
      const size_t size = static_cast<size_t>(count), plane = size + 3;
      Array<int16_t> x(plane * static_cast<size_t>(terms), size_t(count % 3)), weights(static_cast<size_t>(terms), 0);
      Array<int32_t> offsets(static_cast<size_t>(terms), 0), out(size, 1), wanted(size, 0);
      x.generate([&] { return random.between(-255, 255); });
      weights.generate([&] { return random.between(-16384, 16384); });
      for (int t = 0; t < terms; ++t) offsets[static_cast<size_t>(t)] = t * static_cast<int>(plane) + t % 3;
      for (size_t i = 0; i < size; ++i) {
        wanted[i] = 0;
        for (size_t t = 0; t < static_cast<size_t>(terms); ++t) {
          wanted[i] += weights[t] * x[static_cast<size_t>(offsets[t]) + i];
        }
      }

      kernels.fixed_point->multiply(x.data(), offsets.data(), weights.data(), terms, count, out.data());

      CHECK_SAME(out, wanted, text(count, " outputs of ", terms, " terms"));
      x.check_guards(__FILE__, __LINE__);
    }
  }
}

KERNEL_TEST(fixed_point_dot) {
  Random random(2);
  for (int count : {1, 3, 16, 100, kDotCount}) {
    const size_t size = static_cast<size_t>(count);
    Array<int16_t> x(size + 2, 1), grad(size, 0);
    x.generate([&] { return random.next() % 2 == 0 ? 32767 : -32768; });
    grad.generate([&] { return random.next() % 2 == 0 ? 127 : -127; });
    Array<int32_t> offsets(3, 0);
    Array<int64_t> sums(3, 0), wanted(3, 0);
    for (size_t t = 0; t < 3; ++t) {
      offsets[t] = static_cast<int32_t>(t);
      sums[t] = wanted[t] = int64_t{1} << 40;
      for (size_t i = 0; i < size; ++i) wanted[t] += int64_t{grad[i]} * x[t + i];
    }

    kernels.fixed_point->dot(x.data(), offsets.data(), 3, grad.data(), count, sums.data());

    CHECK_SAME(sums, wanted, text(count, " values"));
  }
}

KERNEL_TEST(fixed_point_normalise) {
  Random random(3);
  for (int count : kCounts) {
    const size_t size = static_cast<size_t>(count);
    Array<int16_t> y(size, size_t(count % 5)), out(size, 0), expected(size, 0), stream(size, 0);
    Array<int32_t> wide(size, 0);
    y.generate([&] { return random.between(-5000, 5000); });
    stream.generate([&] { return random.between(-20000, 20000); });
    for (size_t i = 0; i < size; ++i) wide[i] = y[i];
    const Scaling scaling{0.7f, 33.25f, -2000.0f, 3000.0f, -2000.0f};
    int64_t saturated = 0;
    for (size_t i = 0; i < size; ++i) {
      const float value = static_cast<float>(y[i]) * scaling.gain + scaling.offset;
      saturated += value > scaling.high || value < scaling.least;
      expected[i] = static_cast<int16_t>(std::nearbyint(std::fmin(std::fmax(value, scaling.low), scaling.high)));
    }

    CHECK_EQUAL(kernels.fixed_point->normalise_narrow(y.data(), count, scaling, out.data()), saturated);
    CHECK_SAME(out, expected, text(count, " narrow values"));
    CHECK_EQUAL(kernels.fixed_point->normalise_wide(wide.data(), count, scaling, out.data()), saturated);
    CHECK_SAME(out, expected, text(count, " wide values"));
    Array<int16_t> changed = stream;
    CHECK_EQUAL(kernels.fixed_point->add(y.data(), count, scaling, changed.data()), saturated);
    for (size_t i = 0; i < size; ++i) CHECK_EQUAL(int{changed[i]}, stream[i] + expected[i]);
    kernels.fixed_point->subtract(y.data(), count, scaling, changed.data());
    CHECK_SAME(changed, stream, text(count, " values taken off again"));
  }
}

KERNEL_TEST(fixed_point_stream_gradient) {
  Random random(4);
  for (int count : kCounts) {
    const size_t size = static_cast<size_t>(count);
    Array<int32_t> way(size, 0), branch(size, 1);
    Array<int16_t> s(size, 1);
    way.generate([&] { return random.between(-127, 127); });
    branch.generate([&] { return random.between(-60000, 60000); });
    s.generate([&] { return random.between(-700, 700); });
    s[0] = static_cast<int16_t>(count % 2 == 0 ? 512 : 513);
    for (bool approx : {false, true}) {
      const StreamGains gains{0.6f, 1e-3f, approx};
      Array<int8_t> q(size, 0), wanted(size, 0);

      const QuantiseResult found =
          kernels.fixed_point->stream_gradient(way.data(), branch.data(), s.data(), count, gains, {5, 6}, 9, q.data());
      const QuantiseResult expected = portable.fixed_point->stream_gradient(way.data(), branch.data(), s.data(), count,
                                                                            gains, {5, 6}, 9, wanted.data());

      CHECK_SAME(q, wanted, text(count, " gradients"));
      CHECK_EQUAL(found.max_abs, expected.max_abs);
      CHECK_EQUAL(found.saturated, expected.saturated);
    }
  }
}

TEST(fixed_point_weights_keep_their_sums_within_their_bits) {
  const float weights[] = {0.5f, -0.25f, 0.1f, -0.3f, 0.0f, 0.2f};
  int16_t integers[6];

  const FixedPoint fixed = to_fixed_point(weights, 2, 3, 255, 255 * 3, 14, integers);

  CHECK_EQUAL(fixed.exponent, 14);  // 0.5 is below 2^0
  for (int i = 0; i < 6; ++i) CHECK_EQUAL(int{integers[i]}, static_cast<int>(std::nearbyint(weights[i] * 16384)));
  const int64_t largest = 255 * (int64_t{integers[0]} - integers[1] + integers[2]);
  CHECK(largest >> fixed.shift < 1 << 14);
  CHECK(largest >> (fixed.shift - 1) >= 1 << 14);

  const float zeros[] = {0.0f, 0.0f};
  CHECK_EQUAL(to_fixed_point(zeros, 1, 2, 255, 510, 14, integers).shift, 0);
}

}  // namespace bitfleet::test
