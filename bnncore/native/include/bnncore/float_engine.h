// The two algorithms that the bit-packed engine is compared with, each as lean as it is published.
//
// Standard: Algorithm 1 (Courbariaux, Bengio et al., arXiv:1602.02830; as restated by Wang et al., arXiv:2102.04270):
// float32 throughout, l2 batch norm, every layer's real input kept from forward to backward, all weight gradients kept
// until the update, one float a pooled element to find the arg-max again.
// Paper: Algorithm 2 of Wang et al. with its activation mask: float16 for weights, moments and transient gradients;
// one bit for each activation, mask, pooled element and weight gradient; l1 batch norm with the approximate gradient
//   dY = v - mean(v) - sgn(X) mean(v sgn(X) omega),  v = dX / psi, omega = mean |X|, X after beta.
//
// Choices where the sources differ or are silent: sign(0) = +1; padding counts as 0 in every product; latent weights
// are clipped to [-1, 1] after an update and a gradient passes at exactly 1, so "cancelled where |W| > 1" never
// applies; beta keeps float32 and Adam. In Paper a weight's gradient is +1 or -1: Adam does not see a common factor,
// and
// +-1/sqrt(N) would underflow its float16 moments; SGD takes +-1/sqrt(fan-in). What is stored in float16 is rounded
// stochastically where it accumulates (weights and moments), to the nearest elsewhere.
//
// The first layer reads x = 2u - 255; batch norm makes the scale of x immaterial, and running statistics come out in
// the same unit as the other engine's. In Paper, whose float16 cannot hold such sums, products are kept divided by 255.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bnncore/dispatch.h"
#include "bnncore/engine.h"
#include "bnncore/half.h"

namespace bitfleet {

struct Standard {
  using Real = float;
  static constexpr bool kPaper = false;
};

struct Paper {
  using Real = Half;
  static constexpr bool kPaper = true;
};

// Offsets into the arena.
struct FloatBlockLayout {
  size_t weights = kAbsent, momentum = kAbsent, square = kAbsent;  // Real [out][fan-in]
  size_t grad = kAbsent;  // float [out][fan-in], or a bit each, in whole words a row
  size_t beta = kAbsent, beta_mean = kAbsent, beta_square = kAbsent, beta_grad = kAbsent;
  size_t mean = kAbsent, inverse = kAbsent, omega = kAbsent, offset = kAbsent,
         slope = kAbsent;  // float [out]: statistics of the batch, coefficients of its gradient
  size_t running_mean = kAbsent, running_mean_abs_dev = kAbsent;
  size_t out = kAbsent;   // what the next block reads: float, or a bit, [batch][out positions][out]
  size_t late = kAbsent;  // before a late pool: the same for [batch][conv positions][out]
  size_t mask = kAbsent;  // Paper: bit [batch][norm positions][out], |x| <= 1
  size_t pool = kAbsent;  // early pool: float or bit [batch][conv positions][out], 1 at the arg-max
};

struct FloatScratch {
  size_t a = kAbsent, b = kAbsent, c = kAbsent, map = kAbsent;
};

struct FloatLayout {
  MemoryPlan plan;
  std::vector<FloatBlockLayout> blocks;
  std::vector<FloatScratch> scratch;
  size_t input, labels, logits, slots[2];
  size_t sums;  // float64 [2][channels]
  int block_rows;
};

template <class Numerics>
class FloatEngine {
 public:
  using Real = typename Numerics::Real;

  FloatEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads);
  ~FloatEngine();
  FloatEngine(const FloatEngine&) = delete;
  FloatEngine& operator=(const FloatEngine&) = delete;

  static FloatLayout lay_out(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                             int num_threads);

  // As in Engine.
  void initialise(uint64_t seed);
  void reset(uint64_t seed);
  StepResult step(float step_scale);
  StepResult evaluate(int count, int32_t* predictions);
  uint8_t* input() { return at<uint8_t>(layout_.input); }
  int32_t* labels() { return at<int32_t>(layout_.labels); }
  int batch_size() const { return batch_size_; }
  int64_t steps_done() const { return steps_done_; }
  int64_t saturated() const { return 0; }
  const std::vector<BlockSpec>& blocks() const { return blocks_; }
  const MemoryPlan& plan() const { return layout_.plan; }
  uint8_t* arena() { return arena_; }
  const char* isa() const { return kernels_.isa; }
  float* beta(size_t block) { return at<float>(layout_.blocks[block].beta); }
  float* running_mean(size_t block) { return at<float>(layout_.blocks[block].running_mean); }
  // Standard: the standard deviation, which takes the same place in x = (y - mean) / deviation + beta.
  float* running_mean_abs_dev(size_t block) { return at<float>(layout_.blocks[block].running_mean_abs_dev); }
  void keep_statistics() { statistics_steps_ = kStatisticsWindow; }
  EngineCounters counters() const;
  void restore(const EngineCounters& counters);
  Real* weights(size_t block) { return at<Real>(layout_.blocks[block].weights); }
  void write_weights(size_t block, const float* values);
  // For tests: gradients of the last step, before the update. dY of the first block stays in its slot.
  void read_weight_gradient(size_t block, float* out) const;
  float* beta_gradient(size_t block) { return at<float>(layout_.blocks[block].beta_grad); }

 private:
  static constexpr int kStatisticsWindow = 10;

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(arena_ + offset);
  }

  size_t block_count() const { return blocks_.size(); }
  int classes() const { return blocks_.back().out_channels; }
  bool is_last(size_t block) const { return block + 1 == blocks_.size(); }
  Real* slot(int i) const { return at<Real>(layout_.slots[i]); }
  void check_labels(int count) const;

  // Runs of numbers as the products need them.
  void patch_run(size_t block, int position, int first, int count, float* out) const;
  void pixel_run(size_t block, size_t pixel, int first, int count, float* out) const;
  void weight_run(size_t block, int row, int first, int count, float* out) const;
  void grad_run(size_t block, int position, int first, int count, float* out) const;
  bool late_sign(size_t block, size_t position, int channel) const;
  float normalised(size_t block, size_t position, int channel) const;
  bool passes(size_t block, size_t position, int channel) const;

  void forward(int count, bool training);
  void multiply(size_t block, int count);
  void pool_early(size_t block, int count, bool training);
  void find_statistics(size_t block, int positions, const Real* y, bool training);
  void normalise(size_t block, int count, const Real* y, bool training);
  StepResult softmax(int count, int32_t* predictions, bool with_gradient);
  void backward(size_t block);
  void route_late_pool(size_t block);
  void find_gradient_sums(size_t block);
  void apply_norm_gradient(size_t block);
  void spread_early_pool(size_t block);
  void find_weight_gradient(size_t block);
  void find_input_gradient(size_t block);
  void update(float step_scale);
  void update_rows(size_t block, Range rows, float step_scale);
  AdamStep adam_step(float step) const;

  template <typename Work>
  void share(int count, Work work) {
    pool_.run([&](int member) {
      const Range range = partition(count, pool_.num_threads(), member);
      if (range.begin < range.end) work(range, member);
    });
  }

  std::vector<BlockSpec> blocks_;
  OptimizerParams optimizer_;
  int batch_size_;
  const Kernels& kernels_;
  FloatLayout layout_;
  size_t arena_bytes_;
  uint8_t* arena_;
  mutable ThreadPool pool_;
  int current_ = 0;  // the slot that holds the gradient
  uint64_t seed_ = 0;
  int64_t steps_done_ = 0;
  int statistics_steps_ = 0;
  double beta1_power_ = 1.0;
  double beta2_power_ = 1.0;
};

extern template class FloatEngine<Standard>;
extern template class FloatEngine<Paper>;

}  // namespace bitfleet
