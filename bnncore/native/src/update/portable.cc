#include "loops_inl.h"

BITFLEET_DEFINE_UPDATE_KERNELS(portable, )

namespace bitfleet {

void adam_real(float* __restrict value, float* __restrict mean, float* __restrict square, const float* __restrict grad,
               int count, const AdamStep& step) {
  const AdamStep s = step;
  for (int k = 0; k < count; ++k) loops::adam_one(value[k], mean[k], square[k], grad[k], s);
}

}  // namespace bitfleet
