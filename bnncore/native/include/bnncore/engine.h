// The training step of a binary network in one planned block of memory.
//
// Forward, tile by tile of up to 16 output channels: integer products over the whole batch, statistics, sign bits; the
// products are dropped. Backward computes a tile's products again, which gives the exact batch-norm gradient and the
// mask without having stored either, rounds it to 8 bits, multiplies it with the inputs and folds the result into the
// optimizer state; then the gradient for the layer below replaces it, in the same slot. Dense layers may keep their
// products instead: few beside a map's, and most of what a network without maps would compute again.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "bnncore/channel.h"
#include "bnncore/dispatch.h"
#include "bnncore/memory_plan.h"
#include "bnncore/network.h"
#include "bnncore/packing.h"
#include "bnncore/softmax.h"
#include "bnncore/thread_pool.h"
#include "bnncore/trace.h"

namespace bitfleet {

inline constexpr int kTileRows = kNormRows;  // most output channels handled at once
inline constexpr int kBlocksAtOnce = 2;  // blocks of columns in the weight gradient that there is room for, at least
inline constexpr int kWeightRows = 64;   // most output channels handled at once in the weight gradient,
inline constexpr int kInputWeightRows = 52;  // and in the first layer's
inline constexpr int kRowStep = 4;           // of which these are a multiple, since kernels take some rows at once

inline constexpr int kLanes = kWordBits / kTileRows;  // tiles of signs in a word
inline constexpr int kPatchPositions = 1024;          // most positions in a panel
inline constexpr int kEmittedAtOnce = 4096;           // positions whose signs are emitted at once

// Delayed scales of one block, part of the optimizer state. 0 means "not measured yet".
struct BlockScales {
  double normaliser_sum;     // sum over the measured steps of mean |weight gradient|, real units
  int32_t normaliser_count;  // steps measured
  float max_grad_y;          // decayed maximum of |grad_y|, real units
  float max_grad_x;          // decayed maximum of |grad_x| below this block, real units
  float scale_x;             // what a unit of this step's rounded grad_x is worth
};

// What follows from a block's maps and the batch: how its tiles are cut.
struct BlockGeometry {
  bool whole_map;  // the kernel covers the input map once, as in a dense layer: nothing to gather
  bool wide;       // products take 32 bits, not 16
  bool kept;       // forward leaves its products for backward, which need not compute them again
  int tile_rows;   // output channels handled at once: 16, or less where their products would take too much memory
  int y_stride;    // products a channel in a tile: batch x normalised positions, rounded up
  // A row of weights in bits is a run of segments, each filled up to whole words: one a tap, but one in all in the
  // first block, whose inputs are bytes.
  int segments;
  int segment_width;
  size_t segment_words;
  // What fills a vector: samples, where the kernel covers the map or the map has few positions, else positions of one.
  bool abreast;
  // What a panel holds: so many samples (columns), or lines and columns of a map's positions. `shifted`: as in maps.h.
  int panel_lines;
  int panel_columns;
  bool shifted;
  int weight_grad_shift;  // the first block's weight gradient is halved so often, to fit 32 bits
  int weight_rows;        // output channels whose weight gradients are summed at once
  int weight_depth;       // positions of the batch whose gradients are expanded at once for that
  int input_rows;         // positions (samples, where the kernel covers the map) of grad_y expanded at once, at most
  int input_depth;        // output channels of them
  size_t input_words;     // words of input channels whose grad_x is summed at once

  // Segments follow each other without a gap.
  bool joined() const { return segments == 1 || segment_width % kWordBits == 0; }
  size_t row_words() const { return static_cast<size_t>(segments) * segment_words; }
  size_t y_bytes() const { return wide ? sizeof(int32_t) : sizeof(int16_t); }
  // Room for the bits of the weight gradient, and of the gradient of a dense layer's inputs.
  size_t weight_bits_bytes() const {
    return std::min<size_t>(kBlocksAtOnce, row_words()) * most_sign_bits_bytes(weight_depth);
  }
  size_t input_operand_bytes(int outputs) const {
    return most_sign_bits_bytes(input_depth) +
           static_cast<size_t>(input_rows) * input_parts(outputs) * sign_row_bytes(input_depth);
  }
  size_t input_parts(int outputs) const { return (static_cast<size_t>(outputs) + input_depth - 1) / input_depth; }
};

// Offsets into the arena of everything a block owns.
struct BlockLayout {
  size_t latent = kAbsent, momentum = kAbsent, square = kAbsent,
         packed = kAbsent;                                            // weights and their moments, by optimizer
  size_t beta = kAbsent, beta_mean = kAbsent, beta_square = kAbsent;  // float32 [out]
  size_t running_mean = kAbsent, running_mean_abs_dev = kAbsent;      // float32 [out]
  size_t signs = kAbsent;  // uint64 [batch][out positions][words]; none in the last block
  // Where its products are kept: int16 or int32 [out][y_stride], and ChannelStatistics of them [out].
  size_t products = kAbsent, statistics = kAbsent;
};

// A thread's own; "rows" are those of a tile.
struct ScratchLayout {
  size_t y = kAbsent;                 // int16 or int32 [rows][y_stride]
  size_t conv_y = kAbsent;            // int16 or int32 [rows][conv positions], before a pool; or [rows][panel columns]
  size_t offsets = kAbsent;           // int32 [row words]: where a panel has each word of its positions
  size_t patches = kAbsent;           // a panel; in the first block a map with its padding; a pooled gradient
  size_t padding = kAbsent;           // int16 or int32 [rows][conv positions]: what padding added by mistake
  size_t weights = kAbsent;           // uint64 [rows][row words]
  size_t expanded_weights = kAbsent;  // int8, first layer
  size_t bits = kAbsent;              // uint16
  size_t grad_t = kAbsent;            // int8 [rows][y_stride]
  size_t choice = kAbsent;     // uint8, or int32 for large windows, [rows][y_stride]: arg-max of a pool before the norm
  size_t grad_rows = kAbsent;  // int8 [weight rows][weight depth]
  size_t position_sums = kAbsent;   // int32 [weight rows][conv positions], or [weight rows] where nothing is padded
  size_t tap_sums = kAbsent;        // int32 [taps]
  size_t weight_sums = kAbsent;     // int32 [weight rows][row words][64]; first block: int64 [weight rows][64], or none
  size_t columns = kAbsent;         // uint64 [weight depth]
  size_t weight_columns = kAbsent;  // uint64 [input depth]
  size_t weight_bits = kAbsent;     // sign_gemm: signs at some positions; first block: input_grad
  size_t weight_rows = kAbsent;     // sign_gemm: grad_y of some channels; first block: int32 [weight rows][64]
  size_t input_patches = kAbsent;   // uint8 [kInputGradDepth][fan-in], first block
  size_t input_operands = kAbsent;  // sign_gemm: columns of weights, and behind them grad_y at some positions
  size_t input_products = kAbsent;  // int32 [input rows, or in positions][input words][64]
  size_t input_sums = kAbsent;      // int32 [input rows], or [conv positions] and [in positions]
  size_t staged = kAbsent;          // int8: the new gradient of some samples, where it must be moved
};

struct EngineLayout {
  MemoryPlan plan;
  std::vector<BlockGeometry> geometry;
  std::vector<BlockLayout> blocks;
  std::vector<ScratchLayout> scratch;  // one a thread
  size_t input = kAbsent, labels = kAbsent, logits = kAbsent, gradient = kAbsent, packed_weights = kAbsent,
         scales = kAbsent;
  // Bytes a sample in the gradient slot. A block's gradient is [conv positions][out channels] there; that of a pooled
  // map lies at the corners of its windows.
  size_t gradient_stride = 0;
};

// Lays out everything without allocating any of it. With `keep_products` those of dense layers stay until backward,
// which takes more memory and computes nothing again; the results are the same.
EngineLayout lay_out_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                            int num_threads, bool keep_products = false);

// A block's parts of the steps: products forward and again, both backward products (with the update, and the rounding,
// of what they give).
struct PhaseSeconds {
  double forward, recompute, grad_weights, grad_inputs;
};

// What an engine needs, beside its persistent memory, to go on exactly where another one stopped.
struct EngineCounters {
  uint64_t seed;
  int64_t steps_done;
  int32_t statistics_steps;
  int64_t saturated;
  double beta1_power;
  double beta2_power;
};

class Engine {
 public:
  Engine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
         bool keep_products = false);
  virtual ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Weights from `seed`, beta 0, statistics (0, 1), no optimizer history; rounding draws from `seed` too.
  void initialise(uint64_t seed);
  // Forgets optimizer history and statistics; rounding draws from `seed` from here on.
  void reset(uint64_t seed);

  // One step on the full batch in input() and labels(). `trace`, when given, receives every intermediate.
  // Throws std::invalid_argument on a label outside [0, classes).
  StepResult step(float step_scale, Trace* trace = nullptr);
  // Takes running statistics anew, a batch at a time: those of the full batch in input() become part `number` + 1 of
  // their mean, number 0 the first. Nothing else changes.
  void observe(int number);
  // The first `count` samples, normalised by the running statistics. `predictions` may be null.
  StepResult evaluate(int count, int32_t* predictions);

  uint8_t* input() { return at<uint8_t>(layout_.input); }
  int32_t* labels() { return at<int32_t>(layout_.labels); }
  int batch_size() const { return batch_size_; }
  int num_threads() const { return pool_.num_threads(); }
  int64_t steps_done() const { return steps_done_; }
  // Seconds that the first thread spent on each block's parts of the steps since the last reset_phases(), and on all.
  const std::vector<PhaseSeconds>& phase_seconds() const { return phase_seconds_; }
  double step_seconds() const { return step_seconds_; }
  void reset_phases() {
    phase_seconds_.assign(block_count(), {});
    step_seconds_ = 0.0;
  }
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
  EngineCounters counters() const;
  void restore(const EngineCounters& counters);

 protected:
  // With a plan that holds more than a chain of blocks needs.
  Engine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
         EngineLayout layout);

  static constexpr int kStatisticsWindow = 10;  // running statistics: momentum 1 - 1/10, as in the paper's code
  static constexpr float kRunning = -1.0f;      // in place of a kept share: normalise by the running statistics

  // What the updates of one block share in one step.
  struct UpdateContext {
    float gain;  // worth of a unit of the integer weight gradient
    RandomStream random;
    Latent8Step latent8;
    Latent8MomentumStep latent8_momentum;
    BopStep bop;
    AdamStep adam;
    SgdStep sgd;
  };

  struct PackedBit {
    size_t word;
    int shift;
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

  // Where a dense layer has what the gradient of its inputs is the product of, as expanded.
  struct InputOperands {
    bool once;               // `bits` are those of all weights, [parts of the outputs][words], and serve all samples
    int rows;                // samples at once
    size_t part_bits_bytes;  // of one part
    uint8_t* bits;
    uint8_t* expanded;  // [parts][rows]; once: [rows], a part after the other
  };

  // What makes the gradient of a channel's products of that behind its norm.
  struct NormGradient {
    const ChannelStatistics& statistics;
    double mean_abs_dev;
    ChannelThresholds thresholds;
    int64_t y_bound;          // >= |y|
    float scale_in, scale_y;  // worth of a unit of either gradient
    RandomStream random;      // value i draws random_half(padded_index(channel, values, i))
    int channel;
    bool measure;  // only look for the largest magnitude
  };

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(arena_ + offset);
  }

  size_t block_count() const { return blocks_.size(); }
  int classes() const { return blocks_.back().out_channels; }
  const BlockGeometry& geometry(size_t block) const { return layout_.geometry[block]; }
  // Normalised values a channel in `count` samples.
  int norm_count(size_t block, int count) const { return count * blocks_[block].norm_positions(); }
  const uint64_t* pack_rows(size_t block, int first_row, int rows, uint64_t* target) const;
  const uint64_t* pack_run(size_t block, size_t first, int count, uint64_t* target) const;
  // Adds the time of a call on the first thread.
  template <typename Call>
  void timed(double& seconds, int member, Call&& call) const {
    if (member != 0) return call();
    const auto start = std::chrono::steady_clock::now();
    call();
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  template <typename Y>
  void multiply(size_t block, const uint64_t* weights, int rows, int count, int member, Y* y, uint8_t* choice) const;
  template <typename Y>
  void multiply_abreast(size_t block, const uint64_t* weights, int rows, int count, int member, Y* y) const;
  template <typename Y>
  void multiply_maps(size_t block, const uint64_t* weights, int rows, int count, int member, Y* y,
                     uint8_t* choice) const;
  template <typename Y>
  void multiply_input(int sample, int rows, int member, Y* y, size_t y_stride) const;
  template <typename Y>
  void multiply_map(size_t block, int sample, const uint64_t* weights, int rows, int member, Y* y,
                    size_t y_stride) const;
  template <typename Y>
  void multiply_panel(size_t block, const XnorPanel& panel, int count, const uint64_t* weights, int rows,
                      const Y* excess, Y* y, size_t y_stride) const;
  template <typename Y>
  void find_padding(size_t block, const uint64_t* weights, int rows, int member, Y* padding) const;
  // Where the products of a tile are that begins with this channel.
  template <typename Y>
  Y* tile_products(size_t block, int first, int member) const {
    const BlockGeometry& g = geometry(block);
    if (!g.kept) return at<Y>(layout_.scratch[member].y);
    return at<Y>(layout_.blocks[block].products) + static_cast<size_t>(first) * g.y_stride;
  }
  // What a part of a mean of `count` leaves of the others before it.
  static float kept_share(int count) { return 1.0f - 1.0f / static_cast<float>(count); }
  // `kept` is the share of the running statistics that a batch's own leave, below 0 where those are not taken.
  void forward(int count, float kept, Trace* trace);
  template <typename Y>
  void forward_group(size_t block, int group, int count, float kept, int member, Trace* trace);
  template <typename Y>
  void emit_signs(size_t block, int first, int rows, const Y* y, const int32_t* sign_from, int count, int member);
  void clear_unused_lanes(size_t block, int group, int count);
  StepResult softmax(int count, int32_t* predictions, bool with_gradient);
  void backward_block(size_t block, float step_scale, Trace* trace);
  TileResult sum_of_members() const;
  TileResult run_tiles(size_t block, bool measure, float step_scale, Trace* trace);
  template <typename Y>
  TileResult backward_tile(size_t block, int tile, bool measure, float step_scale, int member, Trace* trace);
  // Of one channel's values, in place.
  template <typename Y>
  TileResult round_gradient(const Y* y, int8_t* grad, int values, const NormGradient& norm, float& grad_beta) const;
  template <typename Y>
  void load_gradient(size_t block, int first, int rows, const Y* y, const int32_t* sign_from, int member,
                     int8_t* grad_t) const;
  void store_gradient(size_t block, int first, int rows, const int8_t* grad_t, const uint8_t* choice, int member);
  void trace_gradient(size_t block, int first, int rows, std::vector<int8_t>& values, bool whole_map) const;
  int64_t run_weights(size_t block, bool measure, float step_scale, Trace* trace);
  bool expands_columns_once(size_t block) const;
  void expand_columns(size_t block, Range columns, Range positions, int member) const;
  void gather_weight_column(size_t block, size_t column, Range positions, uint64_t* columns) const;
  int64_t weights_of(size_t block, Range channels, bool measure, const UpdateContext& context, int member,
                     Trace* trace) const;
  int64_t input_weights_of(size_t block, Range channels, bool measure, const UpdateContext& context, int member,
                           Trace* trace) const;
  void load_rows(size_t block, Range channels, Range positions, int8_t* rows, size_t stride) const;
  void add_positions(size_t block, const int8_t* rows, size_t stride, int row_count, Range positions,
                     int32_t* sums) const;
  WeightRuns runs_down(size_t block, int row, int rows, size_t column, int count) const;
  WeightRuns runs_along(size_t block, int row, int segments, size_t column, int count) const;
  int64_t finish_weights(size_t block, const WeightRuns& runs, const IntegerGradients& grads, bool measure,
                         const UpdateContext& context, Trace* trace) const;
  PackedBit packed_bit(size_t block, size_t index) const;
  template <typename T, typename Pack>
  void pack_segments(size_t block, const T* values, Pack pack);
  AdamStep adam_step(float step) const;
  UpdateContext update_context(size_t block, float step_scale) const;
  void update_weights(size_t block, const UpdateContext& context, const WeightRuns& runs,
                      const IntegerGradients& grads) const;
  void update_run(size_t block, const UpdateContext& context, size_t first, uint32_t index, const IntegerGradient& grad,
                  int count) const;
  TileResult run_inputs(size_t block, bool measure, Trace* trace);
  InputOperands input_operands(size_t block, int member) const;
  void expand_packed_weights(size_t block, const InputOperands& operands) const;
  TileResult inputs_of(size_t block, Range samples, const InputOperands& operands, bool measure, int member,
                       Trace* trace);
  TileResult input_map_of(size_t block, int sample, bool bits_are_ready, bool measure, int member, Trace* trace);
  // What becomes of a run of grad_x, and of a sample's when all its runs are there.
  virtual TileResult round_inputs(size_t block, const int32_t* sums, int32_t whole, int columns, uint32_t first,
                                  bool measure, int8_t* target, Trace* trace) const;
  void expand_weight_column(size_t block, int tap, size_t word, Range outputs, int member, uint8_t* bits) const;
  virtual void store_inputs(size_t block, int sample, const int8_t* staged);
  void update_beta(size_t block, int first, const float* grad, int count, float step_scale);
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
  std::vector<TileResult> results_;                  // one a thread
  mutable std::vector<PhaseSeconds> phase_seconds_;  // one a block
  double step_seconds_ = 0.0;
  uint64_t seed_ = 0;
  int64_t steps_done_ = 0;
  int statistics_steps_ = 0;
  int64_t saturated_ = 0;
  double beta1_power_ = 1.0;
  double beta2_power_ = 1.0;
};

}  // namespace bitfleet
