// Reads a packed file (bnncore/export/packed.py has the format) and predicts with it. No Python, no JSON, no libraries.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bitfleet {

// A row of the file's table of sizes (bnncore/export/plan.py).
using PlanRow = std::array<int32_t, 24>;

// Signs of binary weights: for each output channel and kernel element `words` words, bit 1 = minus.
struct Signs {
  int words = 0;
  std::vector<uint64_t> bits;
};

struct Norm {
  std::vector<float> gain, offset;
  int32_t low = 0, limit = 0;
};

struct RealWeights {
  std::vector<int32_t> values;
  int32_t shift = 0;
};

struct Shortcut {
  RealWeights weights;
  Norm norm;
};

// A block, the stem or a unit: only what its kind has is filled in.
struct Layer {
  PlanRow plan{};
  Signs signs;
  std::vector<int32_t> sign_from;
  std::vector<double> mean, inverse, beta;
  RealWeights weights;
  Norm norm;
  std::optional<Norm> second_norm;
  std::optional<Shortcut> shortcut;
};

struct Model {
  std::vector<Layer> layers;
  // Of a residual network's head.
  PlanRow head{};
  float unit = 0;
  std::vector<float> matrix, bias;

  int64_t input_features() const;
  int classes() const;
};

// Reads a file's bytes; throws std::runtime_error that says what is wrong.
Model read_model(const std::vector<uint8_t>& data);

// Gives the logits of one sample of `input_features` bytes.
std::vector<float> logits_of(const Model& model, const uint8_t* sample);

}  // namespace bitfleet
