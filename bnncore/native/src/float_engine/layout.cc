// The memory of the float engines: every variable of the published memory model, and the blocks of their products.
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "bnncore/float_engine.h"
#include "bnncore/packing.h"

namespace bitfleet {

namespace {

int64_t extent(size_t value) { return static_cast<int64_t>(value); }

// Adds a tensor of floats, or of bits in whole words.
size_t add_bits_or_floats(MemoryPlan& plan, bool bits, const std::string& name, const char* role,
                          std::vector<int64_t> shape) {
  if (bits) shape.back() = words_for(static_cast<int>(shape.back()));
  return plan.add(name, role, bits ? "uint64" : "float32", std::move(shape), kPersistent);
}

}  // namespace

template <class Numerics>
FloatLayout FloatEngine<Numerics>::lay_out(const std::vector<BlockSpec>& blocks, const OptimizerParams& optimizer,
                                           int batch_size, int num_threads) {
  constexpr bool kBits = Numerics::kPaper;
  const char* real = kBits ? "uint16" : "float32";
  FloatLayout layout{};
  MemoryPlan& plan = layout.plan;
  size_t largest_map = 0, largest_input = 0;
  int channels = 0, most_rows = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockSpec& s = blocks[i];
    const bool last = i + 1 == blocks.size();
    FloatBlockLayout b{};
    const std::vector<int64_t> weights = {s.out_channels, s.fan_in()};
    b.weights = plan.add(s.linear + ".latent", "weights", real, weights, kPersistent);
    b.momentum = plan.add(s.linear + ".mean", "momenta", real, weights, kPersistent);
    if (optimizer.kind == OptimizerKind::kAdam) {
      b.square = plan.add(s.linear + ".square", "momenta", real, weights, kPersistent);
    }
    b.grad = add_bits_or_floats(plan, kBits, s.linear + ".grad", "gradients", weights);
    const std::pair<size_t*, const char*> vectors[] = {{&b.beta, ".beta"},
                                                       {&b.beta_mean, ".beta_mean"},
                                                       {&b.beta_square, ".beta_square"},
                                                       {&b.running_mean, ".mean"},
                                                       {&b.running_mean_abs_dev, ".mean_abs_dev"},
                                                       {&b.beta_grad, ".beta_grad"},
                                                       {&b.mean, ".batch_mean"},
                                                       {&b.inverse, ".batch_inverse"},
                                                       {&b.omega, ".omega"},
                                                       {&b.offset, ".grad_offset"},
                                                       {&b.slope, ".grad_slope"}};
    for (const auto& [field, name] : vectors) {
      *field = plan.add(s.norm + name, "norm", "float32", {s.out_channels}, kPersistent);
    }
    if (!last) {
      b.out = add_bits_or_floats(plan, kBits, s.norm + ".out", "activations",
                                 {batch_size, s.out_positions(), s.out_channels});
    }
    if (s.pool == Pool::kAfterSign) {
      b.late = add_bits_or_floats(plan, kBits, s.norm + ".late", "activations",
                                  {batch_size, s.conv_positions(), s.out_channels});
    }
    if (s.pool == Pool::kBeforeNorm) {
      b.pool = add_bits_or_floats(plan, kBits, s.norm + ".arg_max", "activations",
                                  {batch_size, s.conv_positions(), s.out_channels});
    }
    if (kBits && !last) {
      b.mask = add_bits_or_floats(plan, true, s.norm + ".mask", "activations",
                                  {batch_size, s.norm_positions(), s.out_channels});
    }
    layout.blocks.push_back(b);
    largest_map = std::max({largest_map, static_cast<size_t>(s.conv_positions()) * s.out_channels,
                            i == 0 ? size_t{0} : static_cast<size_t>(s.in_features())});
    if (i > 0 && s.conv_positions() > 1) largest_input = std::max(largest_input, static_cast<size_t>(s.in_features()));
    channels = std::max(channels, s.out_channels);
    most_rows = std::max({most_rows, batch_size * s.conv_positions(), s.out_channels});
  }
  layout.input = plan.add("input", "input", "uint8", {batch_size, blocks[0].in_features()}, kPersistent);
  layout.labels = plan.add("labels", "input", "int32", {batch_size}, kPersistent);
  layout.logits = plan.add("logits", "activations", "float32", {batch_size, blocks.back().out_channels}, kPersistent);
  for (int i = 0; i < 2; ++i) {
    layout.slots[i] = plan.add(i == 0 ? "gradient_x" : "gradient_y", "gradients", real,
                               {batch_size, extent(largest_map)}, kPersistent);
  }
  layout.sums = plan.add("sums", "norm", "float64", {2, channels}, kPersistent);
  layout.block_rows = std::min(kBlockRows, (most_rows + kPanelRows - 1) / kPanelRows * kPanelRows);
  for (int member = 0; member < num_threads; ++member) {
    const std::string name = "scratch" + std::to_string(member) + ".";
    const auto add = [&](const char* part, size_t count) {
      return plan.add(name + part, "scratch", "float32", {extent(std::max(count, size_t{1}))}, kPersistent, 0, member);
    };
    FloatScratch s{};
    s.a = add("panel_a", panel_size(layout.block_rows, kPanelRows));
    s.b = add("panel_b", panel_size(kBlockColumns, kPanelColumns));
    s.c = add("product", static_cast<size_t>(layout.block_rows) * kBlockColumns);
    s.map = add("map", largest_input);
    layout.scratch.push_back(s);
  }
  plan.lay_out();
  const auto resolve = [&](size_t& index) { index = plan.offset(index); };
  for (FloatBlockLayout& b : layout.blocks) {
    for (size_t* field : {&b.weights, &b.momentum, &b.square, &b.grad, &b.beta, &b.beta_mean, &b.beta_square,
                          &b.beta_grad, &b.mean, &b.inverse, &b.omega, &b.offset, &b.slope, &b.running_mean,
                          &b.running_mean_abs_dev, &b.out, &b.late, &b.mask, &b.pool}) {
      resolve(*field);
    }
  }
  for (FloatScratch& s : layout.scratch) {
    for (size_t* field : {&s.a, &s.b, &s.c, &s.map}) resolve(*field);
  }
  for (size_t* field :
       {&layout.input, &layout.labels, &layout.logits, &layout.slots[0], &layout.slots[1], &layout.sums}) {
    resolve(*field);
  }
  return layout;
}

template <class Numerics>
FloatEngine<Numerics>::FloatEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                                   int num_threads)
    : blocks_(std::move(blocks)),
      optimizer_(optimizer),
      batch_size_(batch_size),
      kernels_(selected_kernels()),
      layout_(lay_out(blocks_, optimizer, batch_size, num_threads)),
      arena_bytes_(layout_.plan.peak_bytes()),
      arena_(nullptr),
      pool_(num_threads) {
  void* memory = mmap(nullptr, arena_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  arena_ = static_cast<uint8_t*>(memory);
}

template <class Numerics>
FloatEngine<Numerics>::~FloatEngine() {
  if (arena_ != nullptr) munmap(arena_, arena_bytes_);
}

template class FloatEngine<Standard>;
template class FloatEngine<Paper>;

}  // namespace bitfleet
