// Softmax cross-entropy of one sample, in double, from exp and log of our own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bnncore/real_math.h"

namespace bitfleet {

struct SoftmaxRow {
  int best;    // the largest logit, the first of equal ones
  double sum;  // of exp(logit - largest)
  double loss;
};

inline SoftmaxRow softmax_row(const float* logits, int classes, int label) {
  SoftmaxRow row{};
  row.best = static_cast<int>(std::max_element(logits, logits + classes) - logits);
  const double largest = logits[row.best];
  for (int c = 0; c < classes; ++c) row.sum += exp_exact(double{logits[c]} - largest);
  row.loss = log_exact(row.sum) - (double{logits[label]} - largest);
  return row;
}

inline double softmax_probability(const SoftmaxRow& row, const float* logits, int c) {
  return exp_exact(double{logits[c]} - double{logits[row.best]}) * (1.0 / row.sum);
}

// Losses are summed as integers, so that the order of the samples does not matter.
inline constexpr double kLossUnit = 4294967296.0;
inline constexpr double kLargestLoss = 1000.0;
inline int64_t loss_in_units(double loss) { return static_cast<int64_t>(std::min(loss, kLargestLoss) * kLossUnit); }

}  // namespace bitfleet
