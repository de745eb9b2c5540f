// The portable loops, which are NEON already on this architecture; FCVTL and FCVTN convert, compares give bits.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "loops_inl.h"

namespace bitfleet::neon {

namespace {

void widen(const uint16_t* halves, int count, float* out) {
  int i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
  for (; i < count; ++i) out[i] = from_half(halves[i]);
}

void narrow(const float* values, int count, uint16_t* halves) {
  const float32x4_t largest = vdupq_n_f32(kLargestHalf), smallest = vdupq_n_f32(-kLargestHalf);
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t four = vmaxq_f32(vminq_f32(vld1q_f32(values + i), largest), smallest);
    vst1_u16(halves + i, vreinterpret_u16_f16(vcvt_f16_f32(four)));
  }
  for (; i < count; ++i) halves[i] = to_half_saturating(values[i]);
}

void pack_norm(const float* x, int rows, int channels, uint64_t* negative, uint64_t* outside) {
  const uint32x4_t select = {1, 2, 4, 8};
  const float32x4_t one = vdupq_n_f32(1.0f);
  for (int r = 0; r < rows; ++r, x += channels) {
    uint64_t below = 0, beyond = 0;
    int c = 0;
    for (; c + 4 <= channels; c += 4) {
      const float32x4_t four = vld1q_f32(x + c);
      below |= static_cast<uint64_t>(vaddvq_u32(vandq_u32(vcltzq_f32(four), select))) << c;
      beyond |= static_cast<uint64_t>(vaddvq_u32(vandq_u32(vcagtq_f32(four, one), select))) << c;
    }
    for (; c < channels; ++c) {
      below |= static_cast<uint64_t>(x[c] < 0.0f) << c;
      beyond |= static_cast<uint64_t>(std::fabs(x[c]) > 1.0f) << c;
    }
    negative[r] = below;
    outside[r] = beyond;
  }
}

}  // namespace

}  // namespace bitfleet::neon

BITFLEET_DEFINE_FLOAT_KERNELS(neon, )
#endif
