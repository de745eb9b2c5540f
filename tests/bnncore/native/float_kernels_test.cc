// Batch norms, updates and conversions of the presets `standard` and `paper`, against the portable loops.
#include "check.h"

namespace bitfleet::test {

namespace {

const int kCounts[] = {1, 2, 3, 4, 7, 8, 9, 15, 17, 31, 33, 64, 65, 100, 300};
const int kRows[] = {1, 2, 5};
const int kChannels[] = {1, 3, 4, 7, 8, 9, 16, 31, 33, 64};

Array<float> random_floats(size_t count, float limit, Random& random) {
  Array<float> values(count, random.next() % 4);
  values.generate([&] { return random.real(limit); });
  return values;
}

// Channels of at most 64, as bits.
Array<uint64_t> random_bits(int rows, int channels, Random& random) {
  Array<uint64_t> bits(static_cast<size_t>(rows));
  random_signs(random, bits, rows, channels, 1);
  return bits;
}

template <typename T>
Array<T> blank(size_t count) {
  Array<T> values(count, 1);
  values.fill(0x3f);
  return values;
}

// Calls check(rows, channels, stride, size of a map, random).
template <typename Check>
void over_maps(uint64_t seed, Check check) {
  Random random(seed);
  for (int rows : kRows) {
    for (int channels : kChannels) {
      const size_t stride = static_cast<size_t>(channels) + random.next() % 3;
      check(rows, channels, stride, static_cast<size_t>(rows - 1) * stride + static_cast<size_t>(channels), random);
    }
  }
}

}  // namespace

KERNEL_TEST(float_signs_and_bytes) {
  Random random(1);
  for (int count : kCounts) {
    const size_t size = static_cast<size_t>(count);
    Array<float> x = random_floats(size, 1.0f, random);
    x[0] = -0.0f;
    Array<float> out = blank<float>(size), wanted = out;
    kernels.floats->signs(x.data(), count, out.data());
    for (size_t i = 0; i < size; ++i) wanted[i] = x[i] < 0.0f ? -1.0f : 1.0f;
    CHECK_SAME(out, wanted, text("signs of ", count));

    Array<uint8_t> bytes(size, 3);
    bytes.generate([&] { return random.next(); });
    kernels.floats->centre_bytes(bytes.data(), count, 1.0f / 255.0f, out.data());
    portable.floats->centre_bytes(bytes.data(), count, 1.0f / 255.0f, wanted.data());
    CHECK_SAME(out, wanted, text("bytes, ", count));

    Array<uint64_t> words(size + 2);
    words.generate([&] { return random.next(); });
    for (int first : {0, 1, 63, 64, 70}) {
      kernels.floats->expand_bits(words.data(), first, count, out.data());
      for (size_t i = 0; i < size; ++i) {
        const size_t bit = i + static_cast<size_t>(first);
        wanted[i] = (words[bit / 64] >> (bit % 64) & 1) != 0 ? -1.0f : 1.0f;
      }
      CHECK_SAME(out, wanted, text(count, " bits from ", first));
    }
  }
}

KERNEL_TEST(float_halves) {
  // All 65536 of them but NaN, whose payload is nobody's business; then every size.
  Array<uint16_t> halves(1 << 16);
  for (size_t i = 0; i < halves.size(); ++i) {
    halves[i] = static_cast<uint16_t>((i & 0x7fff) > 0x7c00 ? 0x1234 : i);
  }
  Array<float> wide = blank<float>(halves.size()), wanted_wide = wide;
  kernels.floats->widen(halves.data(), 1 << 16, wide.data());
  portable.floats->widen(halves.data(), 1 << 16, wanted_wide.data());
  CHECK_SAME(wide, wanted_wide, "every float16");
  kernels.floats->half_signs(halves.data(), 1 << 16, wide.data());
  portable.floats->half_signs(halves.data(), 1 << 16, wanted_wide.data());
  CHECK_SAME(wide, wanted_wide, "the sign of every float16");

  Random random(2);
  for (int count : {1, 3, 4, 7, 8, 9, 17, 2000}) {
    const size_t size = static_cast<size_t>(count);
    Array<float> values(size, 1);
    // Any bits but NaN's: subnormals, ties and what saturates among them.
    values.generate([&] {
      const uint32_t kind = static_cast<uint32_t>(random.next() % 3);
      uint32_t bits = static_cast<uint32_t>(random.next());
      if (kind == 1) bits = (bits & 0x8000e000u) | (0x31000000u + static_cast<uint32_t>(random.next() % 0x17000000u));
      if (kind == 2) bits &= ~0xfffu;
      return (bits & 0x7f800000u) == 0x7f800000u ? 0.0f : std::bit_cast<float>(bits);
    });
    Array<uint16_t> narrow = blank<uint16_t>(size), wanted = narrow;
    kernels.floats->narrow(values.data(), count, narrow.data());
    portable.floats->narrow(values.data(), count, wanted.data());
    CHECK_SAME(narrow, wanted, text(count, " to float16"));
    Array<float> out = blank<float>(size), wanted_out = out;
    kernels.floats->widen(narrow.data(), count, out.data());
    portable.floats->widen(wanted.data(), count, wanted_out.data());
    CHECK_SAME(out, wanted_out, text(count, " from float16"));
  }
}

KERNEL_TEST(float_sums) {
  over_maps(3, [&](int rows, int channels, size_t stride, size_t size, Random& random) {
    const Array<float> y = random_floats(size, 100.0f, random), x = random_floats(size, 2.0f, random);
    const Array<float> beta = random_floats(static_cast<size_t>(channels), 1.0f, random);
    Array<double> mean(static_cast<size_t>(channels), 1);
    mean.generate([&] { return random.real(3.0f) / 3.0; });
    for (int kind = 0; kind < 5; ++kind) {
      Array<double> a(static_cast<size_t>(channels), 1), b(static_cast<size_t>(channels), 1);
      a.generate([&] { return random.real(10.0f); });
      Array<double> wanted_a = a, wanted_b = b;
      const auto sum = [&](const FloatKernels& f, double* first, double* second) {
        if (kind == 0) f.add_rows(y.data(), stride, rows, channels, first);
        if (kind == 1) f.add_squares(y.data(), stride, rows, channels, mean.data(), first);
        if (kind == 2) f.add_deviations(y.data(), stride, rows, channels, mean.data(), first);
        if (kind > 2) {
          f.gradient_sums(y.data(), x.data(), stride, rows, channels, beta.data(), kind == 4, first, second);
        }
      };
      sum(*kernels.floats, a.data(), b.data());
      sum(*portable.floats, wanted_a.data(), wanted_b.data());
      CHECK_SAME(a, wanted_a, text("sum ", kind, " of ", rows, " x ", channels));
      CHECK_SAME(b, wanted_b, text("sum ", kind, " of ", rows, " x ", channels));
    }
  });
}

KERNEL_TEST(float_norms) {
  over_maps(4, [&](int rows, int channels, size_t, size_t, Random& random) {
    const size_t size = static_cast<size_t>(rows) * static_cast<size_t>(channels);
    const size_t width = static_cast<size_t>(channels);
    const Array<float> y = random_floats(size, 100.0f, random), x = random_floats(size, 2.0f, random);
    const Array<float> mean = random_floats(width, 9.0f, random), inverse = random_floats(width, 0.1f, random);
    const Array<float> beta = random_floats(width, 1.0f, random), other = random_floats(width, 1.0f, random);
    const NormGradient norm{inverse.data(), mean.data(), other.data()};
    const Array<uint64_t> negative = random_bits(rows, channels, random), outside = random_bits(rows, channels, random);
    for (int kind = 0; kind < 4; ++kind) {
      Array<float> out = blank<float>(size), wanted = out;
      const auto map = [&](const FloatKernels& f, float* target) {
        if (kind == 0) f.normalise(y.data(), rows, channels, mean.data(), inverse.data(), beta.data(), target);
        if (kind == 1 || kind == 2) {
          f.gradient(y.data(), x.data(), rows, channels, beta.data(), kind == 2, norm, target);
        }
        if (kind == 3) f.bit_gradient(y.data(), rows, channels, negative.data(), outside.data(), norm, target);
      };
      map(*kernels.floats, out.data());
      map(*portable.floats, wanted.data());
      CHECK_SAME(out, wanted, text("map ", kind, " of ", rows, " x ", channels));
    }
    Array<float> in_place = y, wanted = y;  // x may be y, dy may be g
    kernels.floats->normalise(in_place.data(), rows, channels, mean.data(), inverse.data(), beta.data(),
                              in_place.data());
    portable.floats->normalise(y.data(), rows, channels, mean.data(), inverse.data(), beta.data(), wanted.data());
    CHECK_SAME(in_place, wanted, text("in place, ", rows, " x ", channels));

    Array<double> a(width, 1), b(width, 1), wanted_a = a, wanted_b = b;
    kernels.floats->bit_gradient_sums(y.data(), rows, channels, negative.data(), outside.data(), a.data(), b.data());
    portable.floats->bit_gradient_sums(y.data(), rows, channels, negative.data(), outside.data(), wanted_a.data(),
                                       wanted_b.data());
    CHECK_SAME(a, wanted_a, text("bit sums of ", rows, " x ", channels));
    CHECK_SAME(b, wanted_b, text("bit sums of ", rows, " x ", channels));

    Array<float> edges = x;
    for (size_t i = 0; i < size; i += 5) edges[i] = i % 2 == 0 ? 1.0f : -0.0f;
    Array<uint64_t> below = blank<uint64_t>(static_cast<size_t>(rows)), beyond = below;
    Array<uint64_t> wanted_below = below, wanted_beyond = beyond;
    kernels.floats->pack_norm(edges.data(), rows, channels, below.data(), beyond.data());
    portable.floats->pack_norm(edges.data(), rows, channels, wanted_below.data(), wanted_beyond.data());
    CHECK_SAME(below, wanted_below, text("signs of ", rows, " x ", channels));
    CHECK_SAME(beyond, wanted_beyond, text("mask of ", rows, " x ", channels));
  });
}

KERNEL_TEST(float_updates) {
  Random random(5);
  const AdamStep adam{0.9f, 0.999f, 1e-2f, 1000.0f, 1e-8f};
  const SgdStep sgd{0.9f, 0.02f};
  for (int count : kCounts) {
    const size_t size = static_cast<size_t>(count);
    const Array<float> grad = random_floats(size, 0.1f, random), weights = random_floats(size, 1.0f, random);
    const Array<float> mean = random_floats(size, 0.1f, random);
    Array<float> square = random_floats(size, 0.01f, random);
    for (size_t i = 0; i < size; ++i) square[i] = square[i] < 0.0f ? -square[i] : square[i];
    Array<uint64_t> negative(static_cast<size_t>(words_for(count)));
    random_signs(random, negative, 1, count, 0);
    for (bool with_adam : {true, false}) {
      Array<float> w = weights, m = mean, v = square, wanted_w = weights, wanted_m = mean, wanted_v = square;
      const auto step = [&](const FloatKernels& f, Array<float>& to, Array<float>& first, Array<float>& second) {
        if (with_adam) f.adam(to.data(), first.data(), second.data(), grad.data(), size, adam);
        if (!with_adam) f.sgd(to.data(), first.data(), grad.data(), size, 3.0f, sgd);
      };
      step(*kernels.floats, w, m, v);
      step(*portable.floats, wanted_w, wanted_m, wanted_v);
      CHECK_SAME(w, wanted_w, text(count, " weights"));
      CHECK_SAME(m, wanted_m, text(count, " first moments"));
      CHECK_SAME(v, wanted_v, text(count, " second moments"));

      Array<uint16_t> half_w(size, 1), half_m(size, 1), half_v(size, 1);
      portable.floats->narrow(weights.data(), count, half_w.data());
      portable.floats->narrow(mean.data(), count, half_m.data());
      portable.floats->narrow(square.data(), count, half_v.data());
      Array<uint16_t> expected_w = half_w, expected_m = half_m, expected_v = half_v;
      const auto half_step = [&](const FloatKernels& f, Array<uint16_t>& to, Array<uint16_t>& first,
                                 Array<uint16_t>& second) {
        if (with_adam) {
          f.half_adam(to.data(), first.data(), second.data(), negative.data(), count, 0.1f, adam, {1, 2}, 99);
        } else {
          f.half_sgd(to.data(), first.data(), negative.data(), count, 0.1f, sgd, {1, 2}, 99);
        }
      };
      half_step(*kernels.floats, half_w, half_m, half_v);
      half_step(*portable.floats, expected_w, expected_m, expected_v);
      CHECK_SAME(half_w, expected_w, text(count, " weights in 16 bits"));
      CHECK_SAME(half_m, expected_m, text(count, " first moments in 16 bits"));
      CHECK_SAME(half_v, expected_v, text(count, " second moments in 16 bits"));
    }
  }
}

}  // namespace bitfleet::test
