// The order of a step, the loss, and what every such engine keeps.
#include "bnncore/layerwise_engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "bnncore/softmax.h"
#include "products_inl.h"

namespace bitfleet {

ProductLayout add_products(MemoryPlan& plan, int member) {
  const auto add = [&](const char* name, std::vector<int64_t> shape) {
    return plan.add("thread" + std::to_string(member) + "." + name, "scratch", "float32", std::move(shape),
                    kForward | kNormalise | kWeights | kInputs, 0, member);
  };
  return {add("rows", {kProductRows, kProductStride}), add("columns", {kProductColumns, kProductDepth}),
          add("tile", {kProductTile}), add("staged", {kSgemmColumns, kProductStride})};
}

void resolve_products(const MemoryPlan& plan, std::vector<ProductLayout>& products) {
  for (ProductLayout& p : products) {
    for (size_t* field : {&p.a, &p.b, &p.tile, &p.staged}) *field = plan.offset(*field);
  }
}

void check_optimizer(const OptimizerParams& optimizer) {
  if (!is_float(optimizer.kind)) {
    throw std::invalid_argument("the presets standard and paper train with adam or sgd, which keep real weights");
  }
}

LayerwiseEngine::LayerwiseEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                                 int num_threads, CommonLayout common)
    : blocks_(std::move(blocks)),
      optimizer_(optimizer),
      batch_size_(batch_size),
      table_(selected_kernels()),
      kernels_(*table_.floats),
      common_(std::move(common)),
      arena_bytes_(common_.plan.peak_bytes()),
      arena_(nullptr),
      pool_(num_threads) {
  // Anonymous pages cost nothing before they are first written.
  void* memory = mmap(nullptr, arena_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  arena_ = static_cast<uint8_t*>(memory);
}

LayerwiseEngine::~LayerwiseEngine() { munmap(arena_, arena_bytes_); }

StepResult LayerwiseEngine::step(float step_scale) {
  check_labels(labels(), batch_size_, classes());
  beta1_power_ *= static_cast<double>(optimizer_.beta1);
  beta2_power_ *= static_cast<double>(optimizer_.beta2);
  statistics_parts_ = std::min(statistics_steps_ + 1, kStatisticsWindow);
  forward(batch_size_, /*training=*/true);
  const StepResult result = softmax(batch_size_, nullptr, /*with_gradient=*/true);
  for (size_t block = block_count(); block-- > 0;) backward_block(block);
  for (size_t block = 0; block < block_count(); ++block) update_block(block, step_scale);
  ++steps_done_;
  ++statistics_steps_;
  return result;
}

void LayerwiseEngine::observe(int number) {
  statistics_parts_ = number + 1;
  forward(batch_size_, /*training=*/true);
  keep_statistics();
}

StepResult LayerwiseEngine::evaluate(int count, int32_t* predictions) {
  check_labels(labels(), count, classes());
  forward(count, /*training=*/false);
  return softmax(count, predictions, /*with_gradient=*/false);
}

StepResult LayerwiseEngine::softmax(int count, int32_t* predictions, bool with_gradient) {
  const float* logits = at<float>(common_.logits);
  const int32_t* labels = at<int32_t>(common_.labels);
  if (!with_gradient) return softmax_batch(logits, labels, count, classes(), predictions, nullptr);
  const double unit = 1.0 / static_cast<double>(loss_divisor());
  return softmax_batch(logits, labels, count, classes(), predictions, [&](int b, int c, double value) {
    set_top_gradient(size_t(b) * classes() + c, static_cast<float>(value * unit));
  });
}

EngineCounters LayerwiseEngine::counters() const {
  return {seed_, steps_done_, statistics_steps_, 0, beta1_power_, beta2_power_};
}

void LayerwiseEngine::restore(const EngineCounters& counters) {
  seed_ = counters.seed;
  steps_done_ = counters.steps_done;
  statistics_steps_ = counters.statistics_steps;
  beta1_power_ = counters.beta1_power;
  beta2_power_ = counters.beta2_power;
}

ProductScratch LayerwiseEngine::product_scratch(int member) const {
  const ProductLayout& p = common_.products[static_cast<size_t>(member)];
  return {at<float>(p.a), at<float>(p.b), at<float>(p.tile), at<float>(p.staged)};
}

RandomStream LayerwiseEngine::stream(size_t block, Purpose purpose) const {
  return random_stream(seed_, static_cast<uint64_t>(steps_done_), static_cast<uint32_t>(block), purpose);
}

AdamStep LayerwiseEngine::adam_step(float step) const {
  return {optimizer_.beta1, optimizer_.beta2, static_cast<float>(double{step} / (1.0 - beta1_power_)),
          static_cast<float>(1.0 / (1.0 - beta2_power_)), optimizer_.epsilon};
}

}  // namespace bitfleet
