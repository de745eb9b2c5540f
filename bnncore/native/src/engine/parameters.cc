// Parameters: where they start, how a step changes them, how they enter and leave.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"

namespace bitfleet {

namespace {

int8_t round_to_int8(float weight) {
  return static_cast<int8_t>(std::clamp(std::nearbyint(weight * 127.0f), -127.0f, 127.0f));
}

}  // namespace

void Engine::initialise(uint64_t seed) {
  reset(seed);
  const float limit = static_cast<float>(optimizer_.init_limit);
  for (size_t block = 0; block < block_count(); ++block) {
    const BlockSpec& spec = blocks_[block];
    const BlockLayout& layout = layout_.blocks[block];
    const RandomStream random = random_stream(seed, 0, static_cast<uint32_t>(block), Purpose::kInitialise);
    const size_t count = size_t(spec.in_features) * size_t(spec.out_features);
    // Uniform with the variance 1 / fan-in that the paper's code uses for float32 latent weights.
    const float float_limit = std::sqrt(3.0f / static_cast<float>(spec.in_features));
    for (size_t i = 0; i < count; ++i) {
      // Uniform in (-1, 1), symmetric: odd multiples of 2^-24.
      const int32_t odd = static_cast<int32_t>(random_word(random, static_cast<uint32_t>(i)) >> 8) * 2 - 0xffffff;
      const float uniform = static_cast<float>(odd) / 16777216.0f;
      switch (optimizer_.kind) {
        case OptimizerKind::kAdam:
          at<float>(layout.latent)[i] = uniform * float_limit;
          break;
        case OptimizerKind::kBop: {
          const size_t row = i / spec.in_features, k = i % spec.in_features;
          uint64_t& word = at<uint64_t>(layout.packed)[row * words_for(spec.in_features) + k / kWordBits];
          const uint64_t bit = uint64_t{1} << (k % kWordBits);
          word = uniform < 0.0f ? word | bit : word & ~bit;
          break;
        }
        default:
          at<int8_t>(layout.latent)[i] = static_cast<int8_t>(std::nearbyint(uniform * limit));
      }
    }
    std::fill_n(at<float>(layout.beta), spec.out_features, 0.0f);
  }
}

void Engine::reset(uint64_t seed) {
  seed_ = seed;
  steps_done_ = 0;
  statistics_steps_ = 0;
  saturated_ = 0;
  beta1_power_ = beta2_power_ = 1.0;
  std::memset(at<BlockScales>(layout_.scales), 0, block_count() * sizeof(BlockScales));
  for (size_t block = 0; block < block_count(); ++block) {
    const BlockSpec& spec = blocks_[block];
    const BlockLayout& layout = layout_.blocks[block];
    const size_t count = size_t(spec.in_features) * size_t(spec.out_features);
    if (optimizer_.kind == OptimizerKind::kAdam) {
      std::fill_n(at<float>(layout.momentum), count, 0.0f);
      std::fill_n(at<float>(layout.square), count, 0.0f);
    } else if (optimizer_.kind != OptimizerKind::kLatent8) {
      std::fill_n(at<int8_t>(layout.momentum), count, int8_t{0});
    }
    std::fill_n(at<float>(layout.beta_mean), spec.out_features, 0.0f);
    std::fill_n(at<float>(layout.beta_square), spec.out_features, 0.0f);
    std::fill_n(at<float>(layout.running_mean), spec.out_features, 0.0f);
    std::fill_n(at<float>(layout.running_mean_abs_dev), spec.out_features, 1.0f);
  }
}

void Engine::update_run(size_t block, size_t first, const int32_t* grad, int count, float step_scale) {
  const BlockLayout& layout = layout_.blocks[block];
  const BlockScales& scales = at<BlockScales>(layout_.scales)[block];
  const UpdateKernels& update = *kernels_.update;
  const RandomStream random = stream(block, Purpose::kUpdate);
  const uint32_t index = static_cast<uint32_t>(first);
  const float step = optimizer_.step_size * step_scale;
  const float scale_y = grad_y_scale(block);
  if (optimizer_.kind == OptimizerKind::kAdam) {
    const AdamStep adam{optimizer_.beta1, optimizer_.beta2, static_cast<float>(double{step} / (1.0 - beta1_power_)),
                        static_cast<float>(1.0 / (1.0 - beta2_power_)), optimizer_.epsilon};
    update.adam(at<float>(layout.latent) + first, at<float>(layout.momentum) + first, at<float>(layout.square) + first,
                grad, count, scale_y, adam);
    return;
  }
  const double normaliser = scales.normaliser_sum / std::max(scales.normaliser_count, 1);
  const float gain = normaliser > 0.0 ? static_cast<float>(double{scale_y} / normaliser) : 0.0f;
  switch (optimizer_.kind) {
    case OptimizerKind::kLatent8:
      update.latent8(at<int8_t>(layout.latent) + first, grad, count, gain, {step * 127.0f}, random, index);
      break;
    case OptimizerKind::kLatent8Momentum:
      update.latent8_momentum(at<int8_t>(layout.latent) + first, at<int8_t>(layout.momentum) + first, grad, count, gain,
                              {optimizer_.momentum, (1.0f - optimizer_.momentum) * optimizer_.momentum_unit,
                               step * 127.0f / optimizer_.momentum_unit},
                              random, index);
      break;
    default: {
      const size_t depth = static_cast<size_t>(blocks_[block].in_features);
      const size_t row = first / depth, k = first % depth;
      uint64_t& word = at<uint64_t>(layout.packed)[row * words_for(static_cast<int>(depth)) + k / kWordBits];
      const int shift = static_cast<int>(k % kWordBits);
      const float gamma = optimizer_.gamma * step_scale;
      const uint32_t flips = update.bop(
          static_cast<uint32_t>(word >> shift), at<int8_t>(layout.momentum) + first, grad, count, gain,
          {1.0f - gamma, gamma * 127.0f / optimizer_.range, optimizer_.threshold * 127.0f / optimizer_.range}, random,
          index);
      word ^= uint64_t{flips} << shift;
    }
  }
}

void Engine::update_beta(size_t block, int channel, float grad, float step_scale) {
  const BlockLayout& layout = layout_.blocks[block];
  const double step = double{optimizer_.beta_step_size * step_scale} / (1.0 - beta1_power_);
  adam_scalar(at<float>(layout.beta)[channel], at<float>(layout.beta_mean)[channel],
              at<float>(layout.beta_square)[channel], grad,
              {optimizer_.beta1, optimizer_.beta2, static_cast<float>(step),
               static_cast<float>(1.0 / (1.0 - beta2_power_)), optimizer_.epsilon});
}

void Engine::read_weights(size_t block, int8_t* out) const {
  const BlockSpec& spec = blocks_[block];
  const BlockLayout& layout = layout_.blocks[block];
  const size_t count = size_t(spec.in_features) * size_t(spec.out_features);
  switch (optimizer_.kind) {
    case OptimizerKind::kAdam:
      std::transform(at<float>(layout.latent), at<float>(layout.latent) + count, out, round_to_int8);
      break;
    case OptimizerKind::kBop: {
      const size_t words = static_cast<size_t>(words_for(spec.in_features));
      for (size_t i = 0; i < count; ++i) {
        const size_t row = i / spec.in_features, k = i % spec.in_features;
        out[i] = at<uint64_t>(layout.packed)[row * words + k / kWordBits] >> (k % kWordBits) & 1u ? -127 : 127;
      }
      break;
    }
    default:
      std::copy_n(at<int8_t>(layout.latent), count, out);
  }
}

void Engine::read_weights(size_t block, float* out) const {
  const size_t count = size_t(blocks_[block].in_features) * size_t(blocks_[block].out_features);
  std::copy_n(at<float>(layout_.blocks[block].latent), count, out);
}

void Engine::write_weights(size_t block, const int8_t* values) {
  const BlockSpec& spec = blocks_[block];
  const BlockLayout& layout = layout_.blocks[block];
  const size_t count = size_t(spec.in_features) * size_t(spec.out_features);
  switch (optimizer_.kind) {
    case OptimizerKind::kAdam:
      std::transform(values, values + count, at<float>(layout.latent),
                     [](int8_t value) { return static_cast<float>(value) / 127.0f; });
      break;
    case OptimizerKind::kBop:
      for (int row = 0; row < spec.out_features; ++row) {
        kernels_.pack_int8(values + size_t(row) * spec.in_features, spec.in_features,
                           at<uint64_t>(layout.packed) + size_t(row) * words_for(spec.in_features));
      }
      break;
    default:
      std::copy_n(values, count, at<int8_t>(layout.latent));
  }
}

void Engine::write_weights(size_t block, const float* values) {
  const BlockSpec& spec = blocks_[block];
  const BlockLayout& layout = layout_.blocks[block];
  const size_t count = size_t(spec.in_features) * size_t(spec.out_features);
  switch (optimizer_.kind) {
    case OptimizerKind::kAdam:
      std::copy_n(values, count, at<float>(layout.latent));
      break;
    case OptimizerKind::kBop:
      for (int row = 0; row < spec.out_features; ++row) {
        kernels_.pack_float(values + size_t(row) * spec.in_features, spec.in_features,
                            at<uint64_t>(layout.packed) + size_t(row) * words_for(spec.in_features));
      }
      break;
    default:
      std::transform(values, values + count, at<int8_t>(layout.latent), round_to_int8);
  }
}

}  // namespace bitfleet
