// A compare with zero gives a byte of ones where the sign is -1; three rounds of ADDP gather 64 of them into a word.
// Bytes are transposed in 16 x 16 tiles by four rounds of ZIP.
#if defined(__aarch64__)
#include "../bits_neon.h"
#include "../tiles_inl.h"
#include "bnncore/packing.h"

namespace bitfleet::neon {

namespace {

uint8x16_t negative(const int8_t* values) { return vcltzq_s8(vld1q_s8(values)); }

// -0.0 is not below 0.
uint8x16_t negative(const float* values) {
  const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(vcltzq_f32(vld1q_f32(values))),
                                    vreinterpretq_u16_u32(vcltzq_f32(vld1q_f32(values + 4))));
  const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(vcltzq_f32(vld1q_f32(values + 8))),
                                     vreinterpretq_u16_u32(vcltzq_f32(vld1q_f32(values + 12))));
  return vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}

// Packs the whole words; returns how many values that were.
template <typename T>
int pack_words(const T* values, int count, uint64_t* words) {
  int i = 0;
  for (; i + kWordBits <= count; i += kWordBits) {
    const T* v = values + i;
    words[i / kWordBits] = mask_to_bits(negative(v), negative(v + 16), negative(v + 32), negative(v + 48));
  }
  return i;
}

void transpose_16x16(const int8_t* source, size_t source_stride, int8_t* target, size_t target_stride) {
  int8x16_t a[16], b[16];
  for (int r = 0; r < 16; ++r) a[r] = vld1q_s8(source + r * source_stride);
  // Interleaving row r with row r + 8 four times over moves byte (r, c) to (c, r).
  for (int round = 0; round < 4; ++round) {
    for (int r = 0; r < 8; ++r) {
      b[2 * r] = vzip1q_s8(a[r], a[r + 8]);
      b[2 * r + 1] = vzip2q_s8(a[r], a[r + 8]);
    }
    for (int r = 0; r < 16; ++r) a[r] = b[r];
  }
  for (int c = 0; c < 16; ++c) vst1q_s8(target + c * target_stride, a[c]);
}

}  // namespace

void pack_int8(const int8_t* values, int count, uint64_t* words) {
  const int done = pack_words(values, count, words);
  if (done < count) portable::pack_int8(values + done, count - done, words + done / kWordBits);
}

void pack_float(const float* values, int count, uint64_t* words) {
  const int done = pack_words(values, count, words);
  if (done < count) portable::pack_float(values + done, count - done, words + done / kWordBits);
}

void transpose_bytes(const int8_t* source, size_t source_stride, int rows, int columns, int8_t* target,
                     size_t target_stride) {
  loops::transpose_tiles<16, transpose_16x16, portable::transpose_bytes>(source, source_stride, rows, columns, target,
                                                                         target_stride);
}

}  // namespace bitfleet::neon
#endif
