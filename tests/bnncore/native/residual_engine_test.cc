// Trains small residual networks, and compares what they end with: the same bits on every instruction set and number of
// threads, and the golden ones. What they compute is held to NumPy in tests/bnncore/test_residual_engine.py.
#include "bnncore/residual_engine.h"

#include "bnncore/standard_residual_engine.h"
#include "check.h"
#include "forced_isa.h"
#include "golden.h"
#include "networks.h"

namespace bitfleet::test {

namespace {

constexpr int kSteps = 3;
constexpr int kBatch = 5;

BlockSpec named(BlockSpec block, const std::string& name) {
  block.linear = name;
  block.norm = name + "_norm";
  return block;
}

struct NamedResidual {
  std::string name;
  ResidualSpec network;
};

// A 7 x 7 stem with a pool whose windows overlap, and a stage that halves its map.
ResidualSpec with_pool() {
  const StemSpec stem{
      named(conv(21, 19, 3, 18, {7, 7, 2, true}), "stem"), true, true, 3, 3, 2, 2, 1, 1, 6, 5, "second", 32767 / 2};
  const UnitSpec plain{named(conv(6, 5, 18, 18, {3, 3, 1, true}), "u1"), false, 32767 / 2, 0, false, {}};
  const UnitSpec halved{named(conv(6, 5, 18, 70, {2, 2, 2}), "u2"),     false, 32767 / 3, 1, true,
                        {named(conv(3, 2, 18, 70, {1, 1}), "r2"), 2, 2}};
  const UnitSpec last{named(conv(3, 2, 70, 70, {3, 3, 1, true}), "u3"), false, 32767 / 3, 1, false, {}};
  return {stem, {plain, halved, last}, true, "dense", 10};
}

// ApproxSign, a stem that keeps the map, a shortcut without a pool, and no relu.
ResidualSpec without_pool() {
  const StemSpec stem{
      named(conv(5, 4, 1, 3, {3, 3, 1, true}), "stem"), false, false, 0, 0, 1, 1, 0, 0, 5, 4, "", 32767};
  const UnitSpec unit{named(conv(5, 4, 3, 33, {3, 3, 1, true}), "u1"), true, 32767 / 2, 1, true,
                      {named(conv(5, 4, 3, 33, {1, 1}), "r1"), 1, 1}};
  return {stem, {unit}, false, "dense", 4};
}

template <typename AnyEngine>
std::string trained_digest(AnyEngine& engine, int classes) {
  Fnv1a digest;
  const size_t features = static_cast<size_t>(engine.input_features());
  engine.initialise(2026);
  Random random(13);
  const auto add_result = [&](const StepResult& result) {
    digest.add(result.loss);
    digest.add(result.correct);
  };
  for (int step = 0; step < kSteps; ++step) {
    for (int b = 0; b < kBatch; ++b) engine.labels()[b] = (b * 3 + step) % classes;
    for (size_t i = 0; i < kBatch * features; ++i) engine.input()[i] = static_cast<uint8_t>(random.next() & 255);
    add_result(engine.step(1.0f));
  }
  std::vector<int32_t> predictions(kBatch);
  add_result(engine.evaluate(kBatch - 2, predictions.data()));
  digest.add(predictions.data(), predictions.size() * sizeof(int32_t));
  digest.add(engine.saturated());
  for (const PlanEntry& entry : engine.plan().entries()) {
    const bool lasts = entry.role == "weights" || entry.role == "momenta" || entry.role == "norm";
    if (lasts && entry.phases == kPersistent) digest.add(engine.arena() + entry.offset, entry.bytes);
  }
  return digest.hex();
}

template <typename AnyEngine>
void check_preset(const std::string& preset, const Kernels& kernels, const std::vector<NamedOptimizer>& optimizers) {
  const ForcedIsa forced(kernels.isa);
  for (const NamedResidual& each : {NamedResidual{"pool", with_pool()}, NamedResidual{"bare", without_pool()}}) {
    for (const NamedOptimizer& optimizer : optimizers) {
      for (int threads : {1, 2}) {
        AnyEngine engine(each.network, optimizer.params, kBatch, threads);
        CHECK_EQUAL(std::string(engine.isa()), std::string(kernels.isa));
        Golden::instance().meet(preset + "/" + each.name + "/" + optimizer.name,
                                trained_digest(engine, each.network.classes));
      }
    }
  }
}

}  // namespace

KERNEL_TEST(training_residual_networks) { check_preset<ResidualEngine>("residual", kernels, optimizers()); }
KERNEL_TEST(training_residual_networks_with_standard) {
  check_preset<StandardResidualEngine>("standard-residual", kernels, float_optimizers());
}

}  // namespace bitfleet::test
