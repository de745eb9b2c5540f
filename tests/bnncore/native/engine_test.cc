// Trains small networks of every shape, optimizer and preset, and compares what they end with: the same bits on every
// instruction set and number of threads, and the golden ones of tests/golden/engine.txt.
#include "bnncore/engine.h"

#include "bnncore/paper_engine.h"
#include "bnncore/standard_engine.h"
#include "check.h"
#include "forced_isa.h"
#include "golden.h"
#include "networks.h"

namespace bitfleet::test {

namespace {

constexpr int kSteps = 4;
constexpr int kBatch = 19;

void add_weights(Fnv1a& digest, Engine& engine, size_t block) {
  const size_t count = engine.blocks()[block].num_weights();
  if (is_float(engine.optimizer_kind())) {
    digest.add(engine.latent_float(block), count * sizeof(float));
  } else if (engine.optimizer_kind() == OptimizerKind::kBop) {
    std::vector<int8_t> weights(count);
    engine.unpack_weights(block, weights.data());
    digest.add(weights.data(), count);
  } else {
    digest.add(engine.latent_int8(block), count);
  }
}

void add_weights(Fnv1a& digest, StandardEngine& engine, size_t block) {
  digest.add(engine.weights(block), engine.blocks()[block].num_weights() * sizeof(float));
}

void add_weights(Fnv1a& digest, PaperEngine& engine, size_t block) {
  digest.add(engine.weights(block), engine.blocks()[block].num_weights() * sizeof(uint16_t));
}

void add_result(Fnv1a& digest, const StepResult& result) {
  digest.add(result.loss);
  digest.add(result.correct);
}

template <typename AnyEngine>
std::string trained_digest(AnyEngine& engine) {
  Fnv1a digest;
  const size_t features = static_cast<size_t>(engine.blocks()[0].in_features());
  const int classes = engine.blocks().back().out_channels;
  engine.initialise(2026);
  Random random(11);
  for (int step = 0; step < kSteps; ++step) {
    for (int b = 0; b < kBatch; ++b) {
      const int label = (b * 7 + step) % classes;
      engine.labels()[b] = label;
      // Something to learn: what a class shares, and noise.
      for (size_t i = 0; i < features; ++i) {
        const uint64_t shared = split_mix64(static_cast<uint64_t>(label) << 32 | i) & 127;
        engine.input()[static_cast<size_t>(b) * features + i] = static_cast<uint8_t>(shared + (random.next() & 127));
      }
    }
    add_result(digest, engine.step(1.0f));
  }
  std::vector<int32_t> predictions(kBatch);
  add_result(digest, engine.evaluate(kBatch - 2, predictions.data()));
  digest.add(predictions.data(), predictions.size() * sizeof(int32_t));
  digest.add(engine.saturated());
  for (size_t block = 0; block < engine.blocks().size(); ++block) {
    const size_t channels = static_cast<size_t>(engine.blocks()[block].out_channels) * sizeof(float);
    add_weights(digest, engine, block);
    digest.add(engine.beta(block), channels);
    digest.add(engine.running_mean(block), channels);
    digest.add(engine.running_mean_abs_dev(block), channels);
  }
  return digest.hex();
}

// What threads share out is the same with all kernels; the portable ones are slow, and slower under a sanitizer.
int most_threads(const Kernels& kernels) { return std::string(kernels.isa) == "portable" ? 1 : 2; }

template <typename AnyEngine>
void check_preset(const std::string& preset, const Kernels& kernels, const std::vector<NamedOptimizer>& optimizers) {
  const ForcedIsa forced(kernels.isa);
  for (const NamedNetwork& network : networks()) {
    for (const NamedOptimizer& optimizer : optimizers) {
      if (!network.with_every_optimizer && !optimizer.everywhere) continue;
      for (int threads = 1; threads <= most_threads(kernels); ++threads) {
        AnyEngine engine(network.blocks, optimizer.params, kBatch, threads);
        CHECK_EQUAL(std::string(engine.isa()), std::string(kernels.isa));
        Golden::instance().meet(preset + "/" + network.name + "/" + optimizer.name, trained_digest(engine));
      }
    }
  }
}

}  // namespace

KERNEL_TEST(training_with_bitfleet) { check_preset<Engine>("bitfleet", kernels, optimizers()); }

KERNEL_TEST(training_with_kept_products) {
  const ForcedIsa forced(kernels.isa);
  const NamedOptimizer optimizer = optimizers().front();
  for (const NamedNetwork& network : networks()) {
    Engine engine(network.blocks, optimizer.params, kBatch, most_threads(kernels), /*keep_products=*/true);
    Golden::instance().meet("bitfleet/" + network.name + "/" + optimizer.name, trained_digest(engine));
  }
}

KERNEL_TEST(training_with_standard) { check_preset<StandardEngine>("standard", kernels, float_optimizers()); }
KERNEL_TEST(training_with_paper) { check_preset<PaperEngine>("paper", kernels, float_optimizers()); }

TEST(an_engine_goes_on_where_its_counters_say) {
  const NamedNetwork network = networks().front();
  const OptimizerParams params = optimizers().front().params;
  Engine engine(network.blocks, params, kBatch, 1);
  engine.initialise(5);
  engine.step(1.0f);
  engine.step(1.0f);

  const EngineCounters counters = engine.counters();
  CHECK_EQUAL(counters.seed, uint64_t{5});
  CHECK_EQUAL(counters.steps_done, int64_t{2});
  engine.reset(9);
  CHECK_EQUAL(engine.steps_done(), int64_t{0});
  engine.restore(counters);
  CHECK_EQUAL(engine.steps_done(), int64_t{2});
}

TEST(a_label_outside_the_classes_is_refused) {
  const NamedNetwork network = networks().front();
  Engine engine(network.blocks, optimizers().front().params, kBatch, 2);
  engine.initialise(5);
  for (int label : {-1, 10, 1 << 30}) {
    engine.labels()[kBatch - 1] = label;
    bool refused = false;
    try {
      engine.step(1.0f);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace bitfleet::test
