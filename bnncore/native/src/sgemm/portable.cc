#include <cmath>

#include "bnncore/sgemm.h"

namespace bitfleet::portable {

// std::fma is exact everywhere, and slow where the CPU has no instruction for it.
void sgemm_tile(const float* a, const float* b, int depth, float* tile) {
  for (int i = 0; i < kPanelRows * kPanelColumns; ++i) tile[i] = 0.0f;
  for (int k = 0; k < depth; ++k, a += kPanelRows, b += kPanelColumns) {
    for (int r = 0; r < kPanelRows; ++r) {
      for (int c = 0; c < kPanelColumns; ++c) {
        tile[r * kPanelColumns + c] = std::fma(a[r], b[c], tile[r * kPanelColumns + c]);
      }
    }
  }
}

}  // namespace bitfleet::portable
