// l1 batch norm's passes over rows of numbers whose channels lie last, for callers that have no engine.
//
// Everything is one pass, in blocks of rows whose sums are added in order: any number of threads gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

// sum[c] = sum of y; deviation[c] = sum |rows y - sum|, which is whole; y: [rows][channels].
void row_statistics(const int16_t* y, size_t rows, size_t channels, int threads, int64_t* sum, double* deviation);

// By channel: |x| <= 1 where mask_from <= y <= mask_to; y lies above the mean where y > mean_low, and below it where
// y < mean_high. Null masks: every number passes.
struct RowThresholds {
  const float *mask_from, *mask_to, *mean_low, *mean_high, *mean;
};

// Sums over the rows, by channel; each is added to.
struct RowSums {
  double *grad, *moment;  // of the masked gradient, and of it times y - mean
  int64_t *above, *below;
};

// What `apply_gradient_rows` needs of a number: 1 above the mean, 2 below it, and 4 inside the mask.
inline constexpr uint8_t kAbove = 1, kBelow = 2, kInside = 4;

// Y: int16_t or float. y, grad, codes: [rows][channels].
template <typename Y>
void add_gradient_rows(const Y* y, const float* grad, size_t rows, size_t channels, const RowThresholds& t, int threads,
                       uint8_t* codes, const RowSums& sums);

// grad = (masked grad - offset - side slope) inverse, where side is +1 above the mean, -1 below it and 0 at it.
void apply_gradient_rows(float* grad, const uint8_t* codes, size_t rows, size_t channels, bool is_masked,
                         const float* offset, const float* slope, const float* inverse, int threads);

}  // namespace bitfleet
