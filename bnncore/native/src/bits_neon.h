// Bits to bytes and back, shared by the NEON kernels.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace bitfleet::neon {

// Bit k % 8 in byte k.
inline uint8x16_t bit_of_byte() { return vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull)); }

// Byte k is 0xff where bit k of `bits` is set, else 0.
inline uint8x16_t bits_to_mask(uint16_t bits) {
  const uint8x8_t low = vdup_n_u8(static_cast<uint8_t>(bits)), high = vdup_n_u8(static_cast<uint8_t>(bits >> 8));
  return vtstq_u8(vcombine_u8(low, high), bit_of_byte());
}

// Bit k is set where byte k of the four masks, one after the other, is 0xff; the others are 0.
inline uint64_t mask_to_bits(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
  const uint8x16_t select = bit_of_byte();
  const uint8x16_t first = vpaddq_u8(vandq_u8(a, select), vandq_u8(b, select));
  const uint8x16_t second = vpaddq_u8(vandq_u8(c, select), vandq_u8(d, select));
  const uint8x16_t quads = vpaddq_u8(first, second);
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(quads, quads)), 0);
}

}  // namespace bitfleet::neon
