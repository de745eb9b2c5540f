// Softmax cross-entropy of one sample, in double, from exp and log of our own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "bnncore/real_math.h"

namespace bitfleet {

struct StepResult {
  double loss;      // mean cross-entropy, nats
  int64_t correct;  // samples whose largest logit is their label's
};

struct SoftmaxRow {
  int best;    // the largest logit, the first of equal ones
  double sum;  // of exp(logit - largest)
  double loss;
};

// The exponentials of a row's first classes, which its probabilities need again.
inline constexpr int kKeptClasses = 64;

inline SoftmaxRow softmax_row(const float* logits, int classes, int label, double kept[kKeptClasses]) {
  SoftmaxRow row{};
  row.best = static_cast<int>(std::max_element(logits, logits + classes) - logits);
  const double largest = logits[row.best];
  const int few = std::min(classes, kKeptClasses);
  for (int c = 0; c < few; ++c) kept[c] = exp_exact(double{logits[c]} - largest);
  for (int c = 0; c < few; ++c) row.sum += kept[c];
  for (int c = few; c < classes; ++c) row.sum += exp_exact(double{logits[c]} - largest);
  row.loss = log_exact(row.sum) - (double{logits[label]} - largest);
  return row;
}

inline double softmax_probability(const SoftmaxRow& row, const float* logits, int c, const double* kept) {
  const double power = c < kKeptClasses ? kept[c] : exp_exact(double{logits[c]} - double{logits[row.best]});
  return power * (1.0 / row.sum);
}

// Losses are summed as integers, so that the order of the samples does not matter.
inline constexpr double kLossUnit = 4294967296.0;
inline constexpr double kLargestLoss = 1000.0;
inline int64_t loss_in_units(double loss) { return static_cast<int64_t>(std::min(loss, kLargestLoss) * kLossUnit); }

// Throws std::invalid_argument on a label outside [0, classes).
inline void check_labels(const int32_t* labels, int count, int classes) {
  for (int b = 0; b < count; ++b) {
    if (labels[b] < 0 || labels[b] >= classes) {
      throw std::invalid_argument("labels must lie in [0, " + std::to_string(classes) + "), got " +
                                  std::to_string(labels[b]) + " for sample " + std::to_string(b) + " of the batch");
    }
  }
}

// Mean loss and hits of a batch of logits [count][classes]; `predictions` may be null. set_gradient(sample, c, p -
// target) is called for every logit, in order.
template <typename SetGradient>
StepResult softmax_batch(const float* logits, const int32_t* labels, int count, int classes, int32_t* predictions,
                         SetGradient set_gradient) {
  int64_t loss = 0, correct = 0;
  for (int b = 0; b < count; ++b, logits += classes) {
    double kept[kKeptClasses];
    const SoftmaxRow row = softmax_row(logits, classes, labels[b], kept);
    loss += loss_in_units(row.loss);
    correct += row.best == labels[b];
    if (predictions != nullptr) predictions[b] = row.best;
    if constexpr (!std::is_same_v<SetGradient, std::nullptr_t>) {
      for (int c = 0; c < classes; ++c) {
        set_gradient(b, c, softmax_probability(row, logits, c, kept) - (c == labels[b] ? 1.0 : 0.0));
      }
    }
  }
  return {static_cast<double>(loss) / kLossUnit / count, correct};
}

}  // namespace bitfleet
