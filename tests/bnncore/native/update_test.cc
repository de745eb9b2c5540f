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

// Against the definition: see loops::latent8 and round_stochastic.
KERNEL_TEST(update_latent8_of_sums) {
  over_operands(6, [&](const Operands& start, int count, float gain) {
    for (int32_t factor : {-2, 1, 2, 3}) {
      Operands a = start;
      kernels.update->latent8(a.latent.data(), {a.sums.data(), factor, -300}, count, gain, {2.0f}, {1, 2}, 65530);
      for (size_t k = 0; k < a.latent.size(); ++k) {
        const float real = static_cast<float>(factor * start.sums[k] - 300) * (gain * 2.0f);
        const uint32_t word = random_word({1, 2}, 65530 + static_cast<uint32_t>(k));
        CHECK_EQUAL(int32_t{a.latent[k]}, round_stochastic(static_cast<float>(start.latent[k]) - real, word >> 16));
      }
    }
  });
}

KERNEL_TEST(update_latent8) {
  over_operands(1, [&](const Operands& start, int count, float gain) {
    Operands a = start, b = start;
    kernels.update->latent8(a.latent.data(), a.gradient(), count, gain, {2.0f}, {1, 2}, 0xfffffff8u);
    portable.update->latent8(b.latent.data(), b.gradient(), count, gain, {2.0f}, {1, 2}, 0xfffffff8u);
    CHECK_SAME(a.latent, b.latent, text(count, " weights"));
  });
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
