// Optimizer steps, against the portable loops.
#include "bnncore/rounding.h"
#include "check.h"

namespace bitfleet::test {

namespace {

struct Operands {
  Array<int32_t> sums;
  Array<int8_t> latent, momentum;
  Array<float> weights, first, second;

  Operands(int count, size_t misalignment, Random& random)
      : sums(static_cast<size_t>(count), misalignment),
        latent(static_cast<size_t>(count), misalignment),
        momentum(static_cast<size_t>(count), misalignment),
        weights(static_cast<size_t>(count), misalignment),
        first(static_cast<size_t>(count), misalignment),
        second(static_cast<size_t>(count), misalignment) {
    sums.generate([&] { return random.between(-50000, 50000); });
    latent.generate([&] { return random.between(-127, 127); });
    momentum.generate([&] { return random.between(-127, 127); });
    weights.generate([&] { return random.real(1.0f); });
    first.generate([&] { return random.real(1.0f); });
    second.generate([&] { return random.real(0.5f) + 0.5f; });
  }

  IntegerGradient gradient() const { return {sums.data(), -2, 4711}; }
};

template <typename Check>
void over_operands(uint64_t seed, Check check) {
  Random random(seed);
  for (int count : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32}) {
    for (size_t misalignment : {0, 1, 3}) {
      const Operands operands(count, misalignment, random);
      for (float gain : {1e-6f, 1e-3f, 1.0f}) check(operands, count, gain);
    }
  }
}

}  // namespace

// Elements share words in blocks of 32, wherever a run begins.
KERNEL_TEST(update_random_halves) {
  for (uint32_t index : {0u, 15u, 16u, 31u, 32u, 1000u, 0xffffffffu}) {
    const uint32_t word = random_word({1, 2}, index / 32 * 16 + index % 16);
    CHECK_EQUAL(random_half({1, 2}, index), index % 32 < 16 ? word >> 16 : word & 0xffff);
  }
  CHECK_EQUAL(padded_index(0, 33, 5), uint32_t{5});
  CHECK_EQUAL(padded_index(2, 33, 5), uint32_t{2 * 64 + 5});
  CHECK_EQUAL(padded_index(3, 64, 0), uint32_t{3 * 64});
}

// Against the definition: see loops::latent8 and round_stochastic.
KERNEL_TEST(update_latent8) {
  Random random(6);
  const int32_t offsets[] = {-300, 4711, 0};
  for (int count : {1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 65, 100, 257, 600}) {
    for (uint32_t first_index : {0u, 7u, 16u, 30u, 0x1fff0u, 0xfffffff8u}) {
      for (int32_t factor : {-2, 1, 2, 3}) {
        const WeightRuns runs{3, count, 2, static_cast<size_t>(count) + 5, first_index, 64};
        const size_t sums_stride = static_cast<size_t>(count) + 3;
        Array<int32_t> sums(3 * sums_stride, 1);
        sums.generate([&] { return random.between(-50000, 50000); });
        Array<int8_t> latent(runs.begin(3), 1);
        latent.generate([&] { return random.between(-127, 127); });
        const Array<int8_t> before = latent;
        Array<int8_t> wanted = latent;
        for (int r = 0; r < 3; ++r) {
          for (int k = 0; k < count; ++k) {
            const size_t place = runs.begin(r) + static_cast<size_t>(k);
            const int32_t sum = sums[static_cast<size_t>(r) * sums_stride + static_cast<size_t>(k)];
            const float real = static_cast<float>(factor * sum + offsets[r]) * (1e-3f * 2.0f);
            const uint32_t half = random_half({1, 2}, runs.index(r) + static_cast<uint32_t>(k));
            wanted[place] = static_cast<int8_t>(round_stochastic(static_cast<float>(before[place]) - real, half));
          }
        }
        kernels.update->latent8(latent.data(), runs, {sums.data(), sums_stride, factor, offsets}, 1e-3f, {2.0f},
                                {1, 2});
        CHECK_SAME(latent, wanted, text(count, " weights from ", first_index, " on, factor ", factor));
      }
    }
  }
}

KERNEL_TEST(update_latent8_momentum) {
  const Latent8MomentumStep step{0.9f, 3.2f, 0.03f};
  over_operands(2, [&](const Operands& start, int count, float gain) {
    Operands a = start, b = start;
    kernels.update->latent8_momentum(a.latent.data(), a.momentum.data(), a.gradient(), count, gain, step, {1, 2}, 9);
    portable.update->latent8_momentum(b.latent.data(), b.momentum.data(), b.gradient(), count, gain, step, {1, 2}, 9);
    CHECK_SAME(a.latent, b.latent, text(count, " weights"));
    CHECK_SAME(a.momentum, b.momentum, text(count, " momenta"));
  });
}

KERNEL_TEST(update_bop) {
  over_operands(3, [&](const Operands& start, int count, float gain) {
    Operands a = start, b = start;
    const BopStep step{0.9f, 5.0f, 15.0f};
    const uint32_t signs = 0xa5c3f00fu & static_cast<uint32_t>((uint64_t{1} << count) - 1);
    const uint32_t found = kernels.update->bop(signs, a.momentum.data(), a.gradient(), count, gain, step, {3, 4}, 9);
    const uint32_t wanted = portable.update->bop(signs, b.momentum.data(), b.gradient(), count, gain, step, {3, 4}, 9);
    CHECK_EQUAL(found, wanted);
    CHECK_SAME(a.momentum, b.momentum, text(count, " averages"));
  });
}

KERNEL_TEST(update_adam) {
  over_operands(4, [&](const Operands& start, int count, float gain) {
    Operands a = start, b = start;
    const AdamStep step{0.9f, 0.999f, 1e-2f, 1000.0f, 1e-8f};
    kernels.update->adam(a.weights.data(), a.first.data(), a.second.data(), a.gradient(), count, gain, step);
    portable.update->adam(b.weights.data(), b.first.data(), b.second.data(), b.gradient(), count, gain, step);
    CHECK_SAME(a.weights, b.weights, text(count, " weights"));
    CHECK_SAME(a.first, b.first, text(count, " first moments"));
    CHECK_SAME(a.second, b.second, text(count, " second moments"));
  });
}

KERNEL_TEST(update_sgd) {
  over_operands(5, [&](const Operands& start, int count, float gain) {
    Operands a = start, b = start;
    kernels.update->sgd(a.weights.data(), a.first.data(), a.gradient(), count, gain, {0.9f, 0.02f});
    portable.update->sgd(b.weights.data(), b.first.data(), b.gradient(), count, gain, {0.9f, 0.02f});
    CHECK_SAME(a.weights, b.weights, text(count, " weights"));
    CHECK_SAME(a.first, b.first, text(count, " momenta"));
  });
}

}  // namespace bitfleet::test
