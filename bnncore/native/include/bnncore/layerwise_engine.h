// What the presets `standard` and `paper` share: engines that keep every layer's output from the forward to the
// backward pass, and every weight gradient until all of them are known.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bnncore/dispatch.h"
#include "bnncore/engine.h"
#include "bnncore/memory_plan.h"
#include "bnncore/network.h"
#include "bnncore/thread_pool.h"

namespace bitfleet {

struct ProductScratch;

// Offsets of a thread's operands (src/layerwise/products_inl.h).
struct ProductLayout {
  size_t a = kAbsent, b = kAbsent, tile = kAbsent, staged = kAbsent;
};

struct CommonLayout {
  MemoryPlan plan;
  size_t input = kAbsent, labels = kAbsent, logits = kAbsent;
  std::vector<ProductLayout> products;  // one a thread
};

// Adds a thread's operands to a plan as indices; resolve_products turns them into offsets once it is laid out.
ProductLayout add_products(MemoryPlan& plan, int member);
void resolve_products(const MemoryPlan& plan, std::vector<ProductLayout>& products);

// Throws std::invalid_argument unless the latent weights of `optimizer` are real numbers.
void check_optimizer(const OptimizerParams& optimizer);

class LayerwiseEngine {
 public:
  LayerwiseEngine(const LayerwiseEngine&) = delete;
  LayerwiseEngine& operator=(const LayerwiseEngine&) = delete;

  // Weights from `seed`, beta 0, statistics (0, 1), no optimizer history.
  virtual void initialise(uint64_t seed) = 0;
  // Forgets optimizer history and statistics; rounding draws from `seed` from here on.
  virtual void reset(uint64_t seed) = 0;

  // One step on the full batch in input() and labels().
  // Throws std::invalid_argument on a label outside [0, classes).
  StepResult step(float step_scale);
  // Takes running statistics anew, a batch at a time: those of the full batch in input() become part `number` + 1 of
  // their mean, number 0 the first. Nothing else changes.
  void observe(int number);
  // The first `count` samples, normalised by the running statistics. `predictions` may be null.
  StepResult evaluate(int count, int32_t* predictions);

  uint8_t* input() { return at<uint8_t>(common_.input); }
  int32_t* labels() { return at<int32_t>(common_.labels); }
  int batch_size() const { return batch_size_; }
  int num_threads() const { return pool_.num_threads(); }
  int64_t steps_done() const { return steps_done_; }
  int64_t saturated() const { return 0; }  // no 8-bit gradients here
  const std::vector<BlockSpec>& blocks() const { return blocks_; }
  const MemoryPlan& plan() const { return common_.plan; }
  uint8_t* arena() { return arena_; }
  const char* isa() const { return table_.isa; }
  // Statistics were set from outside: the next step continues from them.
  void keep_statistics() { statistics_steps_ = kStatisticsWindow; }
  EngineCounters counters() const;
  void restore(const EngineCounters& counters);

 protected:
  static constexpr int kStatisticsWindow = 10;  // running statistics: momentum 1 - 1/10, as in the paper's code
  static constexpr int kChannelUnit = 16;       // channels that threads share out
  static constexpr int kChannelGroup = 64;      // channels handled at once

  LayerwiseEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
                  CommonLayout common);
  virtual ~LayerwiseEngine();

  virtual void forward(int count, bool training) = 0;
  // Gradient of logit `index` of [batch][classes].
  virtual void set_top_gradient(size_t index, float value) = 0;
  virtual void backward_block(size_t block) = 0;
  virtual void update_block(size_t block, float step_scale) = 0;
  // What the loss adds up over a batch is divided by: 1, or the batch size.
  virtual float loss_divisor() const = 0;

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(arena_ + offset);
  }
  size_t block_count() const { return blocks_.size(); }
  int classes() const { return blocks_.back().out_channels; }
  int norm_count(size_t block, int count) const { return count * blocks_[block].norm_positions(); }
  ProductScratch product_scratch(int member) const;
  RandomStream stream(size_t block, Purpose purpose) const;
  AdamStep adam_step(float step) const;
  // The share that a batch's statistics leave of the running ones.
  float kept_share() const { return 1.0f - 1.0f / static_cast<float>(statistics_parts_); }

  // Calls work(range, member): rows of a batch, or channels in whole units.
  template <typename Work>
  void over_rows(int rows, Work work) {
    pool_.run([&](int member) { work(partition(rows, num_threads(), member), member); });
  }
  template <typename Work>
  void over_units(int count, int unit, Work work) {
    pool_.run([&](int member) {
      const Range part = partition((count + unit - 1) / unit, num_threads(), member);
      work(Range{part.begin * unit, std::min(part.end * unit, count)}, member);
    });
  }
  // Shares a product of [rows][columns] by its longer side. The bits do not depend on it.
  template <typename Work>
  void share_product(int rows, int columns, int column_unit, Work work) {
    if (columns >= rows) {
      over_units(columns, column_unit, [&](Range part, int member) { work(Range{0, rows}, part, member); });
    } else {
      over_units(rows, kSgemmRows, [&](Range part, int member) { work(part, Range{0, columns}, member); });
    }
  }
  // Calls work(first, count) for groups of channels; none crosses a multiple of 64.
  template <typename Work>
  void over_channels(int channels, Work work) {
    over_units(channels, kChannelUnit, [&](Range range, int) {
      for (int first = range.begin, some; first < range.end; first += some) {
        some = std::min(kChannelGroup - first % kChannelGroup, range.end - first);
        work(first, some);
      }
    });
  }

  std::vector<BlockSpec> blocks_;
  OptimizerParams optimizer_;
  int batch_size_;
  const Kernels& table_;
  const FloatKernels& kernels_;
  uint64_t seed_ = 0;
  int64_t steps_done_ = 0;
  int32_t statistics_steps_ = 0;
  int statistics_parts_ = 1;  // that the mean of a training pass has, its own included
  double beta1_power_ = 1.0, beta2_power_ = 1.0;

 private:
  StepResult softmax(int count, int32_t* predictions, bool with_gradient);

  CommonLayout common_;
  size_t arena_bytes_;
  uint8_t* arena_;
  ThreadPool pool_;
};

}  // namespace bitfleet
