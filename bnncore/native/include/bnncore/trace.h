// Room for every intermediate of one step, filled for the tests that compare it with the NumPy oracle.
#pragma once

#include <cstdint>
#include <vector>

namespace bitfleet {

struct BlockTrace {
  std::vector<int32_t> y;             // [out][batch x normalised positions], forward
  std::vector<int32_t> y_again;       // the same, backward
  std::vector<int64_t> sums;          // [out][2]: S, D
  std::vector<int32_t> thresholds;    // [out][3]: sign_from, mask_from, mask_to
  std::vector<int8_t> grad_in;        // [batch x out positions][out]: what enters the block, before the mask
  std::vector<int8_t> grad_y;         // [batch x product positions][out]
  std::vector<int32_t> grad_weights;  // [out][fan-in]
  std::vector<int32_t> grad_x;        // [batch x in positions][in channels], before rounding; empty for the first block
  float grad_in_scale = 0;
  float grad_y_scale = 0;
};

struct Trace {
  std::vector<BlockTrace> blocks;
  std::vector<float> logits;  // [batch][classes]
};

}  // namespace bitfleet
