// The training step of a binary multilayer network in one planned block of memory.
//
// Forward, tile by tile of 16 output channels: integer products over the whole batch, statistics, sign bits; the
// products are dropped. Backward computes a tile's products again, which gives the exact batch-norm gradient and the
// mask without having stored either, rounds it to 8 bits, multiplies it with the inputs and folds the result into the
// optimizer state; then the gradient for the layer below replaces it, in the same slot.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bnncore/channel.h"
#include "bnncore/dispatch.h"
#include "bnncore/memory_plan.h"
#include "bnncore/network.h"
#include "bnncore/thread_pool.h"
#include "bnncore/trace.h"

namespace bitfleet {

inline constexpr int kTileRows = 16;  // output channels handled at once

struct StepResult {
  double loss;      // mean cross-entropy, nats
  int64_t correct;  // samples whose largest logit is their label's
};

// Delayed scales of one block, part of the optimizer state. 0 means "not measured yet".
struct BlockScales {
  double normaliser_sum;     // sum over the measured steps of mean |weight gradient|, real units
  int32_t normaliser_count;  // steps measured
  float max_grad_y;          // decayed maximum of |grad_y|, real units
  float max_grad_x;          // decayed maximum of |grad_x| below this block, real units
  float scale_x;             // what a unit of this step's rounded grad_x is worth
};

// Offsets into the arena of everything a block owns.
struct BlockLayout {
  size_t latent, momentum, square, packed;    // weights and their moments, by optimizer
  size_t beta, beta_mean, beta_square;        // float32 [out]
  size_t running_mean, running_mean_abs_dev;  // float32 [out]
  size_t signs;                               // uint64 [batch][words]; none in the last block
};

struct ScratchLayout {
  size_t y;                 // int32 [16][y_stride]
  size_t weights;           // uint64 [16][words of the widest input]
  size_t expanded_weights;  // int8, first layer
  size_t bits;              // uint16 [batch]
  size_t grad_t;            // int8 [16][y_stride]
  size_t expanded;          // sign_gemm and input_grad
  size_t products;          // int32 [16][32]
  size_t staged;            // int8 [16][widest inner input]
};

struct EngineLayout {
  MemoryPlan plan;
  std::vector<BlockLayout> blocks;
  std::vector<ScratchLayout> scratch;  // one a thread
  size_t input, labels, logits, gradient, packed_weights, scales;
  size_t gradient_stride;  // bytes a sample in the gradient slot
  size_t y_stride;         // int32 a channel in a tile
};

// Lays out everything without allocating any of it.
EngineLayout lay_out_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                            int num_threads);

class Engine {
 public:
  Engine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Weights from `seed`, beta 0, statistics (0, 1), no optimizer history; rounding draws from `seed` too.
  void initialise(uint64_t seed);
  // Forgets optimizer history and statistics; rounding draws from `seed` from here on.
  void reset(uint64_t seed);

  // One step on the full batch in input() and labels(). `trace`, when given, receives every intermediate.
  // Throws std::invalid_argument on a label outside [0, classes).
  StepResult step(float step_scale, Trace* trace = nullptr);
  // The first `count` samples, normalised by the running statistics. `predictions` may be null.
  StepResult evaluate(int count, int32_t* predictions);

  uint8_t* input() { return at<uint8_t>(layout_.input); }
  int32_t* labels() { return at<int32_t>(layout_.labels); }
  int batch_size() const { return batch_size_; }
  int num_threads() const { return pool_.num_threads(); }
  int64_t steps_done() const { return steps_done_; }
  // Elements of 8-bit gradients that saturated, since reset().
  int64_t saturated() const { return saturated_; }
  const std::vector<BlockSpec>& blocks() const { return blocks_; }
  const MemoryPlan& plan() const { return layout_.plan; }
  uint8_t* arena() { return arena_; }
  const char* isa() const { return kernels_.isa; }

  // Latent weights [out][in] of latent8*, in units of 1/127, and of Adam.
  OptimizerKind optimizer_kind() const { return optimizer_.kind; }
  int8_t* latent_int8(size_t block) { return at<int8_t>(layout_.blocks[block].latent); }
  float* latent_float(size_t block) { return at<float>(layout_.blocks[block].latent); }
  // Bop's weights as -127 or 127, int8 [out][in].
  void unpack_weights(size_t block, int8_t* out) const;
  // Either form is converted to what the optimizer keeps.
  void write_weights(size_t block, const int8_t* values);
  void write_weights(size_t block, const float* values);
  float* beta(size_t block) { return at<float>(layout_.blocks[block].beta); }
  float* running_mean(size_t block) { return at<float>(layout_.blocks[block].running_mean); }
  float* running_mean_abs_dev(size_t block) { return at<float>(layout_.blocks[block].running_mean_abs_dev); }
  // Statistics were set from outside: the next step continues from them.
  void keep_statistics() { statistics_steps_ = kStatisticsWindow; }

 private:
  static constexpr int kStatisticsWindow = 10;  // running statistics: momentum 1 - 1/10, as in the paper's code

  enum class Pass { kMeasureGradient, kMeasureWeights, kUpdate };

  // What the updates of one block share in one step.
  struct UpdateContext {
    float gain;  // worth of a unit of the integer weight gradient
    RandomStream random;
    Latent8Step latent8;
    Latent8MomentumStep latent8_momentum;
    BopStep bop;
    AdamStep adam;
  };

  struct TileResult {
    float max_abs;
    int64_t saturated;
    int64_t abs_sum;

    // A maximum and integer sums: the order of adding does not matter.
    void add(const TileResult& part) {
      max_abs = part.max_abs > max_abs ? part.max_abs : max_abs;
      saturated += part.saturated;
      abs_sum += part.abs_sum;
    }
  };

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(arena_ + offset);
  }

  size_t block_count() const { return blocks_.size(); }
  int classes() const { return blocks_.back().out_channels; }
  void check_labels(int count) const;
  const uint64_t* pack_rows(size_t block, int first_row, int rows, uint64_t* target) const;
  void multiply(size_t block, const uint64_t* weights, size_t weights_stride, int rows, int count, int member,
                int32_t* y) const;
  void forward(int count, bool training, Trace* trace);
  void forward_group(size_t block, int group, int count, bool training, int member, Trace* trace);
  StepResult softmax(int count, int32_t* predictions, bool with_gradient);
  void backward_block(size_t block, float step_scale, Trace* trace);
  TileResult sum_of_members() const;
  TileResult run_tiles(size_t block, Pass pass, float step_scale, Trace* trace);
  TileResult backward_tile(size_t block, int tile, Pass pass, float step_scale, int member, Trace* trace);
  int64_t fold_weights(size_t block, int first_row, int rows, Pass pass, float step_scale, int member, Trace* trace);
  AdamStep adam_step(float step) const;
  UpdateContext update_context(size_t block, float step_scale) const;
  void update_run(size_t block, const UpdateContext& context, size_t first, const int32_t* grad, int count);
  TileResult run_inputs(size_t block, bool measure, Trace* trace);
  TileResult inputs_of(size_t block, Range samples, bool measure, int member, Trace* trace);
  void update_beta(size_t block, int channel, float grad, float step_scale);
  float grad_x_scale(size_t block) const;  // of the gradient that enters `block` from above
  float grad_y_scale(size_t block) const;
  float scale_of(float max_abs) const { return max_abs > 0.0f ? max_abs * (optimizer_.headroom / 127.0f) : 1.0f; }
  RandomStream stream(size_t block, Purpose purpose) const;

  std::vector<BlockSpec> blocks_;
  OptimizerParams optimizer_;
  int batch_size_;
  const Kernels& kernels_;
  EngineLayout layout_;
  size_t arena_bytes_;
  uint8_t* arena_;
  mutable ThreadPool pool_;
  std::vector<TileResult> results_;  // one a thread
  uint64_t seed_ = 0;
  int64_t steps_done_ = 0;
  int statistics_steps_ = 0;
  int64_t saturated_ = 0;
  double beta1_power_ = 1.0;
  double beta2_power_ = 1.0;
};

}  // namespace bitfleet
