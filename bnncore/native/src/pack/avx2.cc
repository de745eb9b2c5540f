// VPMOVMSKB takes 32 sign bits of int8 at once; VMOVMSKPS takes 8 of float, after a compare so that -0.0 counts as +1.
// Bytes are transposed in 16 x 16 tiles by four rounds of PUNPCK.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "bnncore/packing.h"

namespace bitfleet::avx2 {

#define BITFLEET_AVX2 __attribute__((target("avx2")))

BITFLEET_AVX2 void pack_int8(const int8_t* values, int count, uint64_t* words) {
  int i = 0;
  for (; i + kWordBits <= count; i += kWordBits) {
    const uint32_t low =
        static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i))));
    const uint32_t high = static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i + 32))));
    words[i / kWordBits] = uint64_t{high} << 32 | low;
  }
  if (i < count) portable::pack_int8(values + i, count - i, words + i / kWordBits);
}

BITFLEET_AVX2 void pack_float(const float* values, int count, uint64_t* words) {
  const __m256 zero = _mm256_setzero_ps();
  int i = 0;
  for (; i + kWordBits <= count; i += kWordBits) {
    uint64_t word = 0;
    for (int part = 0; part < 8; ++part) {
      const __m256 v = _mm256_loadu_ps(values + i + 8 * part);
      word |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_LT_OQ))) << (8 * part);
    }
    words[i / kWordBits] = word;
  }
  if (i < count) portable::pack_float(values + i, count - i, words + i / kWordBits);
}

namespace {

BITFLEET_AVX2 void transpose_16x16(const int8_t* source, size_t source_stride, int8_t* target, size_t target_stride) {
  __m128i a[16], b[16];
  for (int r = 0; r < 16; ++r) {
    a[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + r * source_stride));
  }
  // Interleaving row r with row r + 8 four times over moves byte (r, c) to (c, r).
  for (int round = 0; round < 4; ++round) {
    for (int r = 0; r < 8; ++r) {
      b[2 * r] = _mm_unpacklo_epi8(a[r], a[r + 8]);
      b[2 * r + 1] = _mm_unpackhi_epi8(a[r], a[r + 8]);
    }
    std::memcpy(a, b, sizeof(a));
  }
  for (int c = 0; c < 16; ++c) _mm_storeu_si128(reinterpret_cast<__m128i*>(target + c * target_stride), a[c]);
}

}  // namespace

BITFLEET_AVX2 void transpose_bytes(const int8_t* source, size_t source_stride, int rows, int columns, int8_t* target,
                                   size_t target_stride) {
  const int whole_rows = rows / 16 * 16;
  const int whole_columns = columns / 16 * 16;
  for (int r = 0; r < whole_rows; r += 16) {
    for (int c = 0; c < whole_columns; c += 16) {
      transpose_16x16(source + r * source_stride + c, source_stride, target + c * target_stride + r, target_stride);
    }
  }
  if (whole_columns < columns) {
    portable::transpose_bytes(source + whole_columns, source_stride, whole_rows, columns - whole_columns,
                              target + whole_columns * target_stride, target_stride);
  }
  if (whole_rows < rows) {
    portable::transpose_bytes(source + whole_rows * source_stride, source_stride, rows - whole_rows, columns,
                              target + whole_rows, target_stride);
  }
}

}  // namespace bitfleet::avx2
#endif
