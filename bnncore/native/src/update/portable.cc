#include "loops_inl.h"

BITFLEET_DEFINE_UPDATE_KERNELS(portable, )

namespace bitfleet {

void adam_scalar(float& value, float& mean, float& square, float grad, const AdamStep& step) {
  loops::adam_one(value, mean, square, grad, step);
}

}  // namespace bitfleet
