// Construction, parameters and the order of a step.
#include "bnncore/residual_engine.h"

#include <algorithm>
#include <stdexcept>

#include "planes.h"

namespace bitfleet {

ResidualEngine::ResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size, int num_threads)
    : ResidualEngine(network, optimizer, batch_size, num_threads,
                     lay_out_residual(network, optimizer, batch_size, num_threads)) {}

ResidualEngine::ResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size, int num_threads,
                               ResidualLayout layout)
    : Engine(residual_blocks(network), optimizer, batch_size, num_threads, layout.engine),
      network_(std::move(network)),
      more_(std::move(layout)),
      samples_(static_cast<size_t>(batch_size)),
      stems_(static_cast<size_t>(num_threads)) {}

void ResidualEngine::initialise(uint64_t seed) {
  Engine::initialise(seed);
  reset(seed);
  const auto start = [&](const RealLayout& weights, uint32_t layer, size_t count, int fan_in) {
    const RandomStream random = random_stream(seed, 0, layer, Purpose::kInitialise);
    for (size_t i = 0; i < count; ++i) {
      at<float>(weights.value)[i] = initial_weight(random, static_cast<uint32_t>(i), fan_in);
    }
  };
  const StemSpec& stem = network_.stem;
  start(more_.stem, 0, stem.conv.num_weights(), stem.conv.fan_in());
  if (!stem.second_norm.empty()) std::fill_n(at<float>(more_.second_norm.beta.value), stem.conv.out_channels, 0.0f);
  for (size_t block = 1; block < block_count(); ++block) {
    if (!unit(block).has_shortcut) continue;
    const BlockSpec& conv = unit(block).shortcut.conv;
    start(more_.shortcuts[block], static_cast<uint32_t>(block) | kSide, conv.num_weights(), conv.fan_in());
    std::fill_n(at<float>(more_.shortcut_norms[block].beta.value), conv.out_channels, 0.0f);
  }
  const size_t features = static_cast<size_t>(network_.features()), classes = static_cast<size_t>(network_.classes);
  start(more_.dense, static_cast<uint32_t>(block_count()), features * classes, network_.features());
  std::fill_n(at<float>(more_.bias.value), classes, 0.0f);
}

void ResidualEngine::reset(uint64_t seed) {
  Engine::reset(seed);
  const bool trains = optimizer_.kind != OptimizerKind::kFrozen;
  if (trains) std::fill_n(at<uint8_t>(layout_.scales), (2 * block_count() + 1) * sizeof(BlockScales), uint8_t{0});
  const auto forget = [&](const RealLayout& parameter, size_t count) {
    if (!trains) return;
    std::fill_n(at<float>(parameter.mean), count, 0.0f);
    std::fill_n(at<float>(parameter.square), count, 0.0f);
  };
  const auto forget_norm = [&](const NormLayout& norm, int channels) {
    forget(norm.beta, static_cast<size_t>(channels));
    std::fill_n(at<float>(norm.running_mean), channels, 0.0f);
    std::fill_n(at<float>(norm.running_mean_abs_dev), channels, 1.0f);
  };
  const StemSpec& stem = network_.stem;
  forget(more_.stem, stem.conv.num_weights());
  if (!stem.second_norm.empty()) forget_norm(more_.second_norm, stem.conv.out_channels);
  for (size_t block = 1; block < block_count(); ++block) {
    if (!unit(block).has_shortcut) continue;
    forget(more_.shortcuts[block], unit(block).shortcut.conv.num_weights());
    forget_norm(more_.shortcut_norms[block], unit(block).shortcut.conv.out_channels);
  }
  forget(more_.dense, static_cast<size_t>(network_.features()) * static_cast<size_t>(network_.classes));
  forget(more_.bias, static_cast<size_t>(network_.classes));
}

StepResult ResidualEngine::step(float step_scale) {
  if (optimizer_.kind == OptimizerKind::kFrozen) throw std::invalid_argument("a frozen network cannot be trained");
  check_labels(labels(), batch_size_, network_.classes);
  StepResult result{};
  timed(step_seconds_, 0, [&] {
    beta1_power_ *= static_cast<double>(optimizer_.beta1);
    beta2_power_ *= static_cast<double>(optimizer_.beta2);
    forward_residual(batch_size_, kept_share(std::min(statistics_steps_ + 1, kStatisticsWindow)));
    head_logits(batch_size_);
    result = head_softmax(batch_size_, nullptr, /*with_gradient=*/true);
    backward_head(step_scale);
    for (size_t block = block_count(); block-- > 1;) backward_unit(block, step_scale);
    const StemSpec& stem = network_.stem;
    prepare_real(stem.conv, more_.stem, 255, int64_t{255} * stem.conv.fan_in(), kStemBits);
    const BlockScales& scales = at<BlockScales>(layout_.scales)[0];
    if (!stem.second_norm.empty() && !(scales.max_grad_x > 0.0f)) run_stem(StemPass::kMeasureSecond, step_scale);
    if (!(scales.max_grad_y > 0.0f)) run_stem(StemPass::kMeasureFirst, step_scale);
    run_stem(StemPass::kTrain, step_scale);
  });
  ++steps_done_;
  ++statistics_steps_;
  return result;
}

void ResidualEngine::observe(int number) {
  if (optimizer_.kind == OptimizerKind::kFrozen) throw std::invalid_argument("a frozen network keeps its statistics");
  const int64_t saturated = saturated_;
  forward_residual(batch_size_, kept_share(number + 1));
  saturated_ = saturated;
  keep_statistics();
}

StepResult ResidualEngine::evaluate(int count, int32_t* predictions) {
  check_labels(labels(), count, network_.classes);
  forward_residual(count, kRunning);
  head_logits(count);
  return head_softmax(count, predictions, /*with_gradient=*/false);
}

RandomStream ResidualEngine::side_stream(size_t block, Purpose purpose) const {
  return random_stream(seed_, static_cast<uint64_t>(steps_done_), static_cast<uint32_t>(block) | kSide, purpose);
}

void ResidualEngine::train_real(const RealLayout& parameter, size_t first, const float* grads, int count,
                                const AdamStep& adam) const {
  adam_real(at<float>(parameter.value) + first, at<float>(parameter.mean) + first, at<float>(parameter.square) + first,
            grads, count, adam);
}

// Integer gradients, a unit of which is worth `unit`.
void ResidualEngine::train_dots(const RealLayout& parameter, size_t first, const int64_t* dots, size_t count,
                                double unit, float step_scale) const {
  constexpr size_t kRun = 64;
  const AdamStep adam = adam_step(optimizer_.beta_step_size * step_scale);
  for (size_t start = 0; start < count; start += kRun) {
    const size_t some = std::min(kRun, count - start);
    float grads[kRun];
    for (size_t k = 0; k < some; ++k) grads[k] = static_cast<float>(static_cast<double>(dots[start + k]) * unit);
    train_real(parameter, first + start, grads, static_cast<int>(some), adam);
  }
}

}  // namespace bitfleet
