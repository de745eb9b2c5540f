#include "loops_inl.h"

namespace bitfleet::portable {

namespace {

void widen(const uint16_t* halves, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = from_half(halves[i]);
}

void narrow(const float* values, int count, uint16_t* halves) {
  for (int i = 0; i < count; ++i) halves[i] = to_half_saturating(values[i]);
}

void pack_norm(const float* x, int rows, int channels, uint64_t* negative, uint64_t* outside) {
  for (int r = 0; r < rows; ++r, x += channels) {
    negative[r] = outside[r] = 0;
    for (int c = 0; c < channels; ++c) {
      negative[r] |= static_cast<uint64_t>(x[c] < 0.0f) << c;
      outside[r] |= static_cast<uint64_t>(std::fabs(x[c]) > 1.0f) << c;
    }
  }
}

}  // namespace

}  // namespace bitfleet::portable

BITFLEET_DEFINE_FLOAT_KERNELS(portable, )
