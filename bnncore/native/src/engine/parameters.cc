// Parameters: where they start, how a step changes them, how they enter and leave.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"

namespace bitfleet {

namespace {

// Keeps the sign, which is the weight in use: a negative weight that would round to 0 becomes -1.
int8_t round_to_int8(float weight) {
  const float rounded = std::clamp(std::nearbyint(weight * 127.0f), -127.0f, 127.0f);
  return static_cast<int8_t>(rounded == 0.0f && weight < 0.0f ? -1.0f : rounded);
}

}  // namespace

void Engine::initialise(uint64_t seed) {
  reset(seed);
  const float limit = static_cast<float>(optimizer_.init_limit);
  for (size_t block = 0; block < block_count(); ++block) {
    const BlockSpec& spec = blocks_[block];
    const BlockLayout& layout = layout_.blocks[block];
    const RandomStream random = random_stream(seed, 0, static_cast<uint32_t>(block), Purpose::kInitialise);
    const size_t count = spec.num_weights();
    if (optimizer_.kind == OptimizerKind::kBop || optimizer_.kind == OptimizerKind::kFrozen) {
      std::fill_n(at<uint64_t>(layout.packed), spec.out_channels * geometry(block).row_words(), uint64_t{0});
    }
    for (size_t i = 0; i < count; ++i) {
      const float uniform = random_uniform(random, static_cast<uint32_t>(i));
      switch (optimizer_.kind) {
        case OptimizerKind::kAdam:
        case OptimizerKind::kSgd:
          at<float>(layout.latent)[i] = initial_weight(random, static_cast<uint32_t>(i), spec.fan_in());
          break;
        case OptimizerKind::kFrozen:
        case OptimizerKind::kBop: {
          const PackedBit place = packed_bit(block, i);
          uint64_t& word = at<uint64_t>(layout.packed)[place.word];
          const uint64_t bit = uint64_t{1} << place.shift;
          word = uniform < 0.0f ? word | bit : word & ~bit;
          break;
        }
        default:
          at<int8_t>(layout.latent)[i] = static_cast<int8_t>(std::nearbyint(uniform * limit));
      }
    }
    std::fill_n(at<float>(layout.beta), spec.out_channels, 0.0f);
  }
}

void Engine::reset(uint64_t seed) {
  seed_ = seed;
  steps_done_ = 0;
  statistics_steps_ = 0;
  saturated_ = 0;
  beta1_power_ = beta2_power_ = 1.0;
  const bool trains = optimizer_.kind != OptimizerKind::kFrozen;
  if (trains) std::memset(at<BlockScales>(layout_.scales), 0, block_count() * sizeof(BlockScales));
  for (size_t block = 0; block < block_count(); ++block) {
    const BlockSpec& spec = blocks_[block];
    const BlockLayout& layout = layout_.blocks[block];
    const size_t count = spec.num_weights();
    if (is_float(optimizer_.kind)) {
      std::fill_n(at<float>(layout.momentum), count, 0.0f);
      if (optimizer_.kind == OptimizerKind::kAdam) std::fill_n(at<float>(layout.square), count, 0.0f);
    } else if (trains && optimizer_.kind != OptimizerKind::kLatent8) {
      std::fill_n(at<int8_t>(layout.momentum), count, int8_t{0});
    }
    if (trains) {
      std::fill_n(at<float>(layout.beta_mean), spec.out_channels, 0.0f);
      std::fill_n(at<float>(layout.beta_square), spec.out_channels, 0.0f);
    }
    std::fill_n(at<float>(layout.running_mean), spec.out_channels, 0.0f);
    std::fill_n(at<float>(layout.running_mean_abs_dev), spec.out_channels, 1.0f);
  }
}

Engine::UpdateContext Engine::update_context(size_t block, float step_scale) const {
  const OptimizerParams& o = optimizer_;
  const BlockScales& scales = at<BlockScales>(layout_.scales)[block];
  const float step = o.step_size * step_scale;
  const float gamma = o.gamma * step_scale;
  const float scale_y = grad_y_scale(block);
  UpdateContext context{};
  if (is_float(o.kind)) {
    context.gain = scale_y;
    if (o.kind == OptimizerKind::kSgd) context.gain *= std::sqrt(static_cast<float>(blocks_[block].num_weights()));
  } else {
    const double normaliser = scales.normaliser_sum / std::max(scales.normaliser_count, 1);
    context.gain = normaliser > 0.0 ? static_cast<float>(double{scale_y} / normaliser) : 0.0f;
  }
  context.gain = std::ldexp(context.gain, geometry(block).weight_grad_shift);
  context.random = stream(block, Purpose::kUpdate);
  context.latent8 = {step * 127.0f};
  context.latent8_momentum = {o.momentum, (1.0f - o.momentum) * o.momentum_unit, step * 127.0f / o.momentum_unit};
  context.bop = {1.0f - gamma, gamma * 127.0f / o.range, o.threshold * 127.0f / o.range};
  context.adam = adam_step(step);
  context.sgd = {o.momentum, step};
  return context;
}

AdamStep Engine::adam_step(float step) const {
  return {optimizer_.beta1, optimizer_.beta2, static_cast<float>(double{step} / (1.0 - beta1_power_)),
          static_cast<float>(1.0 / (1.0 - beta2_power_)), optimizer_.epsilon};
}

void Engine::update_weights(size_t block, const UpdateContext& context, const WeightRuns& runs,
                            const IntegerGradients& grads) const {
  if (optimizer_.kind == OptimizerKind::kLatent8) {
    kernels_.update->latent8(at<int8_t>(layout_.blocks[block].latent), runs, grads, context.gain, context.latent8,
                             context.random);
    return;
  }
  for (int r = 0; r < runs.runs; ++r) {
    update_run(block, context, runs.begin(r), runs.index(r), grads.run(r), runs.count);
  }
}

void Engine::update_run(size_t block, const UpdateContext& context, size_t first, uint32_t index,
                        const IntegerGradient& grad, int count) const {
  const BlockLayout& layout = layout_.blocks[block];
  const UpdateKernels& update = *kernels_.update;
  switch (optimizer_.kind) {
    case OptimizerKind::kLatent8Momentum:
      update.latent8_momentum(at<int8_t>(layout.latent) + first, at<int8_t>(layout.momentum) + first, grad, count,
                              context.gain, context.latent8_momentum, context.random, index);
      break;
    case OptimizerKind::kSgd:
      update.sgd(at<float>(layout.latent) + first, at<float>(layout.momentum) + first, grad, count, context.gain,
                 context.sgd);
      break;
    case OptimizerKind::kFrozen:
    case OptimizerKind::kLatent8:  // all runs at once, above
      break;
    case OptimizerKind::kBop: {
      const int width = geometry(block).segment_width;
      for (int k = 0; k < count;) {  // a run ends with its half word, or with its segment
        const PackedBit place = packed_bit(block, first + k);
        const int in_segment = static_cast<int>((first + k) % static_cast<size_t>(width));
        const int run = std::min({32 - place.shift % 32, width - in_segment, count - k});
        uint64_t& word = at<uint64_t>(layout.packed)[place.word];
        const uint32_t flips =
            update.bop(static_cast<uint32_t>(word >> place.shift), at<int8_t>(layout.momentum) + first + k,
                       {grad.sums + k, grad.factor, grad.offset}, run, context.gain, context.bop, context.random,
                       index + static_cast<uint32_t>(k));
        word ^= uint64_t{flips} << place.shift;
        k += run;
      }
      break;
    }
    case OptimizerKind::kAdam:
      update.adam(at<float>(layout.latent) + first, at<float>(layout.momentum) + first,
                  at<float>(layout.square) + first, grad, count, context.gain, context.adam);
      break;
  }
}

void Engine::update_beta(size_t block, int first, const float* grad, int count, float step_scale) {
  const BlockLayout& layout = layout_.blocks[block];
  adam_real(at<float>(layout.beta) + first, at<float>(layout.beta_mean) + first, at<float>(layout.beta_square) + first,
            grad, count, adam_step(optimizer_.beta_step_size * step_scale));
}

// Where Bop keeps the bit of weight `index` of [out][fan-in].
Engine::PackedBit Engine::packed_bit(size_t block, size_t index) const {
  const BlockGeometry& g = geometry(block);
  const size_t width = static_cast<size_t>(g.segment_width);
  const size_t k = index % width;
  return {index / width * g.segment_words + k / kWordBits, static_cast<int>(k % kWordBits)};
}

void Engine::unpack_weights(size_t block, int8_t* out) const {
  const uint64_t* packed = at<uint64_t>(layout_.blocks[block].packed);
  for (size_t i = 0; i < blocks_[block].num_weights(); ++i) {
    const PackedBit place = packed_bit(block, i);
    out[i] = packed[place.word] >> place.shift & 1u ? -127 : 127;
  }
}

// Every segment of every row of [out][fan-in] to whole words.
template <typename T, typename Pack>
void Engine::pack_segments(size_t block, const T* values, Pack pack) {
  const BlockGeometry& g = geometry(block);
  uint64_t* packed = at<uint64_t>(layout_.blocks[block].packed);
  const size_t segments = static_cast<size_t>(blocks_[block].out_channels) * g.segments;
  for (size_t i = 0; i < segments; ++i) {
    pack(values + i * g.segment_width, g.segment_width, packed + i * g.segment_words);
  }
}

void Engine::write_weights(size_t block, const int8_t* values) {
  const BlockSpec& spec = blocks_[block];
  const BlockLayout& layout = layout_.blocks[block];
  const size_t count = spec.num_weights();
  switch (optimizer_.kind) {
    case OptimizerKind::kAdam:
    case OptimizerKind::kSgd:
      std::transform(values, values + count, at<float>(layout.latent),
                     [](int8_t value) { return static_cast<float>(value) / 127.0f; });
      break;
    case OptimizerKind::kFrozen:
    case OptimizerKind::kBop:
      pack_segments(block, values, kernels_.pack_int8);
      break;
    default:
      std::copy_n(values, count, at<int8_t>(layout.latent));
  }
}

void Engine::write_weights(size_t block, const float* values) {
  const BlockSpec& spec = blocks_[block];
  const BlockLayout& layout = layout_.blocks[block];
  const size_t count = spec.num_weights();
  switch (optimizer_.kind) {
    case OptimizerKind::kAdam:
    case OptimizerKind::kSgd:
      std::copy_n(values, count, at<float>(layout.latent));
      break;
    case OptimizerKind::kFrozen:
    case OptimizerKind::kBop:
      pack_segments(block, values, kernels_.pack_float);
      break;
    default:
      std::transform(values, values + count, at<int8_t>(layout.latent), round_to_int8);
  }
}

}  // namespace bitfleet
