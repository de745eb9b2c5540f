// Construction and the order of a step.
#include "bnncore/engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <stdexcept>

#include "layout.h"

namespace bitfleet {

EngineLayout lay_out_engine(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer, int batch_size,
                            int num_threads, bool keep_products) {
  return lay_out_engine(blocks, optimizer, batch_size, num_threads, keep_products, nullptr);
}

Engine::Engine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
               bool keep_products)
    : Engine(blocks, optimizer, batch_size, num_threads,
             lay_out_engine(blocks, optimizer, batch_size, num_threads, keep_products)) {}

Engine::Engine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size, int num_threads,
               EngineLayout layout)
    : blocks_(std::move(blocks)),
      optimizer_(optimizer),
      batch_size_(batch_size),
      kernels_(selected_kernels()),
      layout_(std::move(layout)),
      arena_bytes_(layout_.plan.peak_bytes()),
      arena_(nullptr),
      pool_(num_threads),
      results_(static_cast<size_t>(num_threads)),
      phase_seconds_(blocks_.size()) {
  // Anonymous pages cost nothing before they are first written, so an engine that never trains takes no memory.
  void* memory = mmap(nullptr, arena_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  arena_ = static_cast<uint8_t*>(memory);
}

Engine::~Engine() {
  if (arena_ != nullptr) munmap(arena_, arena_bytes_);
}

StepResult Engine::step(float step_scale, Trace* trace) {
  if (optimizer_.kind == OptimizerKind::kFrozen) throw std::invalid_argument("a frozen network cannot be trained");
  check_labels(labels(), batch_size_, classes());
  StepResult result{};
  timed(step_seconds_, 0, [&] {
    beta1_power_ *= static_cast<double>(optimizer_.beta1);
    beta2_power_ *= static_cast<double>(optimizer_.beta2);
    forward(batch_size_, kept_share(std::min(statistics_steps_ + 1, kStatisticsWindow)), trace);
    result = softmax(batch_size_, nullptr, /*with_gradient=*/true);
    for (size_t block = block_count(); block-- > 0;) backward_block(block, step_scale, trace);
  });
  ++steps_done_;
  ++statistics_steps_;
  return result;
}

void Engine::observe(int number) {
  if (optimizer_.kind == OptimizerKind::kFrozen) throw std::invalid_argument("a frozen network keeps its statistics");
  forward(batch_size_, kept_share(number + 1), nullptr);
  keep_statistics();
}

StepResult Engine::evaluate(int count, int32_t* predictions) {
  check_labels(labels(), count, classes());
  forward(count, kRunning, nullptr);
  return softmax(count, predictions, /*with_gradient=*/false);
}

EngineCounters Engine::counters() const {
  return {seed_, steps_done_, statistics_steps_, saturated_, beta1_power_, beta2_power_};
}

void Engine::restore(const EngineCounters& counters) {
  seed_ = counters.seed;
  steps_done_ = counters.steps_done;
  statistics_steps_ = counters.statistics_steps;
  saturated_ = counters.saturated;
  beta1_power_ = counters.beta1_power;
  beta2_power_ = counters.beta2_power;
}

RandomStream Engine::stream(size_t block, Purpose purpose) const {
  return random_stream(seed_, static_cast<uint64_t>(steps_done_), static_cast<uint32_t>(block), purpose);
}

float Engine::grad_x_scale(size_t block) const {
  // Softmax gradients (p - target) lie in [-1, 1] and are rounded to 1/127; the loss is the mean over the batch.
  if (block + 1 == block_count()) return 1.0f / (127.0f * static_cast<float>(batch_size_));
  return at<BlockScales>(layout_.scales)[block + 1].scale_x;
}

float Engine::grad_y_scale(size_t block) const { return scale_of(at<BlockScales>(layout_.scales)[block].max_grad_y); }

}  // namespace bitfleet
