// The training step of a residual network (bnncore/residual.py), which an Engine's blocks add to a stream.
//
// Block i > 0 is the binary convolution of unit i, block 0 what the stem leaves: its signs. Forward, a tile of channels
// adds its normalised products to the stream in place. Backward, the products are computed again from the signs, the
// same integers are taken off, and the stream is as it was: only the last stream of each stage is ever stored. The
// stem's maps are computed again for a few channels at a time, and are never stored either.
#pragma once

#include "bnncore/engine.h"
#include "bnncore/fixed_point.h"

namespace bitfleet {

struct StemSpec {
  BlockSpec conv;  // real-valued
  bool relu;
  bool pools;
  int pool_height, pool_width, pool_stride_height, pool_stride_width, pool_pad_height, pool_pad_width;
  int out_height, out_width;  // the map of the stream
  std::string second_norm;    // empty: there is none
  int limit;                  // of what it adds to the stream

  int out_positions() const { return out_height * out_width; }
};

struct ShortcutSpec {
  BlockSpec conv;               // real-valued, 1 x 1, on the pooled map
  int pool_height, pool_width;  // 1 x 1: does not pool
};

struct UnitSpec {
  BlockSpec conv;
  bool approx;  // gradient of its sign
  int limit;
  int stage;  // whose stream it adds to
  bool has_shortcut;
  ShortcutSpec shortcut;
};

struct ResidualSpec {
  StemSpec stem;
  std::vector<UnitSpec> units;
  bool relu;  // of the head
  std::string dense;
  int classes;

  int features() const { return units.back().conv.out_channels; }
  int head_positions() const { return units.back().conv.conv_positions(); }
};

// A real-valued parameter with Adam's moments, float32.
struct RealLayout {
  size_t value = kAbsent, mean = kAbsent, square = kAbsent;
};

struct NormLayout {
  RealLayout beta;
  size_t running_mean = kAbsent, running_mean_abs_dev = kAbsent;
};

inline NormLayout norm_of(const BlockLayout& block) {
  return {{block.beta, block.beta_mean, block.beta_square}, block.running_mean, block.running_mean_abs_dev};
}

struct StreamLayout {
  size_t values = kAbsent;  // int16 [channels][stride]: channel by channel, samples x positions
  size_t stride = 0;
};

// A thread's own, beside an Engine's.
struct ResidualScratch {
  size_t planes = kAbsent;    // int16: a sample's input with padding, or its pooled stream, by channel
  size_t sums = kAbsent;      // int32: a sample's products
  size_t offsets = kAbsent;   // int32: where each term of a product lies in the planes
  size_t dots = kAbsent;      // int64 [rows][terms]: weight gradients
  size_t pooled = kAbsent;    // int16 [batch x positions], stem
  size_t choice = kAbsent;    // uint8, likewise: arg-max of its pool
  size_t inner = kAbsent;     // int16, likewise: between its norms
  size_t grad = kAbsent;      // int8 [rows][batch x positions]: the gradient of the stream
  size_t grad_row = kAbsent;  // int16: gradients of a sample
};

struct ResidualLayout {
  EngineLayout engine;
  std::vector<StreamLayout> streams;  // one a stage
  RealLayout stem, dense, bias;
  std::vector<RealLayout> shortcuts;  // by unit; absent where there is none
  NormLayout stem_norm, second_norm;
  std::vector<NormLayout> shortcut_norms;
  size_t grad_y = kAbsent;         // int8 [batch][gradient stride]: of a unit's products
  size_t shortcut_grad = kAbsent;  // int8 [channels][shortcut stride]
  size_t integers = kAbsent;       // int16: weights of the real-valued convolution in work
  size_t features = kAbsent;       // float32 [channels][batch]
  size_t grad_logits = kAbsent;    // float32 [batch][classes]
  size_t grad_features = kAbsent;  // float32 [batch][channels]
  std::vector<ResidualScratch> scratch;
};

ResidualLayout lay_out_residual(const ResidualSpec& network, const OptimizerParams& optimizer, int batch_size,
                                int num_threads);

class ResidualEngine : public Engine {
 public:
  ResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size, int num_threads);

  // As those of Engine.
  void initialise(uint64_t seed);
  void reset(uint64_t seed);
  StepResult step(float step_scale);
  void observe(int number);
  StepResult evaluate(int count, int32_t* predictions);

  int input_features() const { return network_.stem.conv.in_features(); }

 private:
  // Which part of a stem's backward pass is wanted: the first step measures one scale after the other.
  enum class StemPass { kMeasureSecond, kMeasureFirst, kTrain };

  struct StemResult {
    float second_max, first_max;
    int64_t saturated;
  };

  ResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size, int num_threads,
                 ResidualLayout layout);

  size_t unit_count() const { return network_.units.size(); }
  const UnitSpec& unit(size_t block) const { return network_.units[block - 1]; }
  int16_t* stream_row(int stage, int channel) const {
    const StreamLayout& s = more_.streams[static_cast<size_t>(stage)];
    return at<int16_t>(s.values) + static_cast<size_t>(channel) * s.stride;
  }
  // Scales of what stands beside block i, and of the head.
  BlockScales& side_scales(size_t block) const { return at<BlockScales>(layout_.scales)[block_count() + block]; }
  BlockScales& head_scales() const { return side_scales(block_count()); }
  RandomStream side_stream(size_t block, Purpose purpose) const;

  // `kept` is the share of the running statistics that a batch's own leave, below 0 where those are not taken.
  void forward_residual(int count, float kept);
  int64_t forward_stem(Range channels, int count, float kept, int member);
  int64_t forward_unit(size_t block, int group, int count, float kept, int member);
  ChannelMoments moments_of(const NormLayout& norm, int channel, const ChannelStatistics& statistics, int values,
                            int exponent, float kept);
  void multiply_stem(Range channels, int count, int member, int16_t* y) const;
  void fill_planes(int sample, int16_t* planes) const;
  void pool_stem(const int16_t* y, int count, int16_t* pooled, uint8_t* choice) const;
  void unpool_stem(const int8_t* grad, const uint8_t* choice, int8_t* out, int64_t& saturated, int member) const;
  Scaling inner_scaling(const ChannelMoments& moments, float beta) const;
  StemResult backward_stem(Range channels, StemPass pass, float step_scale, int member);
  void stem_weights(Range channels, const int8_t* grads, size_t stride, int member, float step_scale) const;
  void run_stem(StemPass pass, float step_scale);

  void prepare_real(const BlockSpec& conv, const RealLayout& weights, int64_t largest_input, int64_t most, int bits);
  void prepare_shortcut(size_t block);
  void pool_stream(size_t block, int sample, int16_t* planes) const;
  void multiply_shortcut(size_t block, Range channels, int count, int member, int32_t* y) const;
  TileResult backward_shortcut(size_t block, Range channels, bool measure, float step_scale, int member);
  void run_shortcut(size_t block, bool measure, float step_scale);

  void backward_unit(size_t block, float step_scale);
  TileResult run_unit_tiles(size_t block, bool measure, float step_scale);
  TileResult unit_tile(size_t block, int tile, bool measure, float step_scale, int member);
  // Gradient of a norm's input for one channel, in place, or only its largest magnitude; `trains` says whether its beta
  // moves.
  template <typename Y>
  TileResult norm_gradient(const NormLayout& norm, int channel, const Y* y, const ChannelStatistics& statistics,
                           int8_t* grad, int values, int64_t y_bound, float scale_in, float scale_y,
                           RandomStream random, bool measure, float step_scale, bool trains);
  void load_stream_gradient(int channels, int positions, Range some, int8_t* rows, size_t stride) const;
  TileResult run_stream_gradient(size_t block, bool measure);
  TileResult round_inputs(size_t block, const int32_t* sums, int32_t whole, int columns, uint32_t first, bool measure,
                          int8_t* target, Trace* trace) const override;
  void store_inputs(size_t block, int sample, const int8_t* staged) override;
  const int32_t* shortcut_inputs(size_t block, int sample, int32_t* scratch) const;

  void head_logits(int count);
  StepResult head_softmax(int count, int32_t* predictions, bool with_gradient);
  void backward_head(float step_scale);
  TileResult head_gradient(bool measure, Range samples) const;
  void train_real(const RealLayout& parameter, size_t first, const float* grads, int count, const AdamStep& adam) const;
  void train_dots(const RealLayout& parameter, size_t first, const int64_t* dots, size_t count, double unit,
                  float step_scale) const;

  ResidualSpec network_;
  ResidualLayout more_;
  FixedPoint fixed_{};               // of the integers in work
  float gradient_scale_ = 0.0f;      // what a unit of the stream's gradient is worth
  StreamGains stream_gains_{};       // of the unit in work
  bool measures_ = false;            // run_stream_gradient only looks for the largest magnitude
  std::vector<TileResult> samples_;  // of each sample of the batch
  std::vector<StemResult> stems_;    // one a thread
};

}  // namespace bitfleet
