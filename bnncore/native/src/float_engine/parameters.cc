// Parameters of the float engines: where they start and how a step changes them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bnncore/float_engine.h"
#include "reals.h"

namespace bitfleet {

template <class Numerics>
void FloatEngine<Numerics>::initialise(uint64_t seed) {
  reset(seed);
  for (size_t block = 0; block < block_count(); ++block) {
    const BlockSpec& s = blocks_[block];
    const RandomStream random = random_stream(seed, 0, static_cast<uint32_t>(block), Purpose::kInitialise);
    for (size_t i = 0; i < s.num_weights(); ++i) {
      store(weights(block)[i], initial_weight(random, static_cast<uint32_t>(i), s.fan_in()));
    }
    std::fill_n(beta(block), s.out_channels, 0.0f);
  }
}

template <class Numerics>
void FloatEngine<Numerics>::reset(uint64_t seed) {
  restore({seed, 0, 0, 0, 1.0, 1.0});
  for (size_t block = 0; block < block_count(); ++block) {
    const BlockSpec& s = blocks_[block];
    const FloatBlockLayout& b = layout_.blocks[block];
    std::memset(at<uint8_t>(b.momentum), 0, s.num_weights() * sizeof(Real));
    if (optimizer_.kind == OptimizerKind::kAdam) std::memset(at<uint8_t>(b.square), 0, s.num_weights() * sizeof(Real));
    std::fill_n(at<float>(b.beta_mean), s.out_channels, 0.0f);
    std::fill_n(at<float>(b.beta_square), s.out_channels, 0.0f);
    std::fill_n(running_mean(block), s.out_channels, 0.0f);
    std::fill_n(running_mean_abs_dev(block), s.out_channels, 1.0f);
  }
}

template <class Numerics>
EngineCounters FloatEngine<Numerics>::counters() const {
  return {seed_, steps_done_, statistics_steps_, 0, beta1_power_, beta2_power_};
}

template <class Numerics>
void FloatEngine<Numerics>::restore(const EngineCounters& counters) {
  seed_ = counters.seed;
  steps_done_ = counters.steps_done;
  statistics_steps_ = counters.statistics_steps;
  beta1_power_ = counters.beta1_power;
  beta2_power_ = counters.beta2_power;
}

template <class Numerics>
void FloatEngine<Numerics>::write_weights(size_t block, const float* values) {
  for (size_t i = 0; i < blocks_[block].num_weights(); ++i) {
    // A negative weight too small for float16 keeps its sign, which is the weight in use.
    Real& weight = weights(block)[i];
    store(weight, values[i]);
    if (values[i] < 0.0f && load(weight) == 0.0f) store(weight, -0x1p-24f);
  }
}

template <class Numerics>
void FloatEngine<Numerics>::read_weight_gradient(size_t block, float* out) const {
  const BlockSpec& s = blocks_[block];
  const size_t depth = static_cast<size_t>(s.fan_in());
  for (size_t i = 0; i < s.num_weights(); ++i) {
    if constexpr (Numerics::kPaper) {
      const uint64_t* row = at<uint64_t>(layout_.blocks[block].grad) + i / depth * words_for(s.fan_in());
      out[i] = get_bit(row, i % depth) ? -1.0f : 1.0f;
    } else {
      out[i] = at<float>(layout_.blocks[block].grad)[i];
    }
  }
}

template <class Numerics>
AdamStep FloatEngine<Numerics>::adam_step(float step) const {
  return {optimizer_.beta1, optimizer_.beta2, static_cast<float>(double{step} / (1.0 - beta1_power_)),
          static_cast<float>(1.0 / (1.0 - beta2_power_)), optimizer_.epsilon};
}

template <class Numerics>
void FloatEngine<Numerics>::update(float step_scale) {
  for (size_t block = 0; block < block_count(); ++block) {
    share(blocks_[block].out_channels, [&](Range rows, int) { update_rows(block, rows, step_scale); });
  }
}

template <class Numerics>
void FloatEngine<Numerics>::update_rows(size_t block, Range rows, float step_scale) {
  const BlockSpec& s = blocks_[block];
  const FloatBlockLayout& b = layout_.blocks[block];
  const size_t depth = static_cast<size_t>(s.fan_in());
  const bool adam = optimizer_.kind == OptimizerKind::kAdam;
  const AdamStep step = adam_step(optimizer_.step_size * step_scale);
  const float size = optimizer_.step_size * step_scale;
  const float unit = Numerics::kPaper && !adam ? 1.0f / std::sqrt(static_cast<float>(s.fan_in())) : 1.0f;
  const RandomStream random =
      random_stream(seed_, static_cast<uint64_t>(steps_done_), static_cast<uint32_t>(block), Purpose::kUpdate);
  Real *w = at<Real>(b.weights), *first = at<Real>(b.momentum), *second = at<Real>(b.square);
  for (int row = rows.begin; row < rows.end; ++row) {
    for (size_t k = 0; k < depth; ++k) {
      const size_t i = static_cast<size_t>(row) * depth + k;
      float gradient, square = 0.0f;
      if constexpr (Numerics::kPaper) {
        const uint64_t* bits = at<uint64_t>(b.grad) + static_cast<size_t>(row) * words_for(s.fan_in());
        gradient = get_bit(bits, k) ? -unit : unit;
      } else {
        gradient = at<float>(b.grad)[i];
      }
      float weight = load(w[i]), mean = load(first[i]);
      if (adam) {
        square = load(second[i]);
        adam_scalar(weight, mean, square, gradient, step);
      } else {
        mean = optimizer_.momentum * mean + gradient;
        weight -= size * mean;
      }
      weight = std::clamp(weight, -1.0f, 1.0f);
      if constexpr (Numerics::kPaper) {
        const uint32_t word = random_word(random, static_cast<uint32_t>(i));
        w[i] = to_half_stochastic(weight, word & 0x1fffu);
        first[i] = to_half_stochastic(mean, word >> 13 & 0x1fffu);
        if (adam) second[i] = to_half_stochastic(square, word >> 19);
      } else {
        w[i] = weight;
        first[i] = mean;
        if (adam) second[i] = square;
      }
    }
    adam_scalar(at<float>(b.beta)[row], at<float>(b.beta_mean)[row], at<float>(b.beta_square)[row],
                at<float>(b.beta_grad)[row], adam_step(optimizer_.beta_step_size * step_scale));
  }
}

template class FloatEngine<Standard>;
template class FloatEngine<Paper>;

}  // namespace bitfleet
