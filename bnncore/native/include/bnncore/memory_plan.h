// Every byte of training, laid out before the first step.
//
// An entry lives in some phases of a step; two entries that never live at the same time may share bytes. Threads pass
// from phase to phase together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bitfleet {

// The phases of a step, as bits; in each block's backward pass kNormalise, kWeights and kInputs follow each other.
enum Phase : uint32_t {
  kForward = 1,      // products, statistics, signs
  kLoss = 2,         // softmax cross-entropy and its gradient
  kNormalise = 4,    // a tile's products again, the batch-norm gradient in 8 bits
  kWeights = 8,      // weight gradients, straight into the optimizer state
  kInputs = 16,      // the gradient for the layer below
  kPersistent = 31,  // between steps too
  // Evaluation without training: layer i is in phase i % 4, so only the signs of neighbouring layers meet.
  kEvaluate = 32,
  kEvaluateAll = 15 * kEvaluate
};

struct PlanEntry {
  std::string name;
  std::string role;   // "weights", "momenta", "norm", "activations", "gradients", "input", "scratch"
  std::string dtype;  // NumPy's name
  std::vector<int64_t> shape;
  size_t bytes;  // shape times item size, plus any padding that kernels may read
  size_t offset;
  uint32_t phases;
  int member;  // the thread whose scratch it is, or kShared
};

inline constexpr int kShared = -1;

// In place of an offset: there is no such entry, and to touch it is a crash rather than another entry's damage.
inline constexpr size_t kAbsent = SIZE_MAX;

class MemoryPlan {
 public:
  // Every entry starts at a multiple of this.
  static constexpr size_t kAlignment = 64;

  // Returns the entry's index.
  size_t add(std::string name, std::string role, std::string dtype, std::vector<int64_t> shape, uint32_t phases,
             size_t padding_bytes = 0, int member = kShared);

  // Gives every entry its offset: persistent ones in order, then the others by size at the lowest free place.
  void lay_out();

  const std::vector<PlanEntry>& entries() const { return entries_; }
  size_t peak_bytes() const { return peak_bytes_; }
  size_t offset(size_t index) const { return index == kAbsent ? kAbsent : entries_[index].offset; }

 private:
  std::vector<PlanEntry> entries_;
  size_t peak_bytes_ = 0;
};

}  // namespace bitfleet
