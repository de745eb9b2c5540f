// VPMOVMSKB takes 32 sign bits of int8 at once; VMOVMSKPS takes 8 of float, after a compare so that -0.0 counts as +1.
// Bytes are transposed in tiles of 16 or 8 by four rounds of PUNPCK.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "../tiles_inl.h"
#include "bnncore/packing.h"
#include "gather_inl.h"

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

// A block of kRows x kColumns bytes, each 8 or 16.
template <int kRows, int kColumns>
BITFLEET_AVX2 inline void transpose_block(const int8_t* source, size_t source_stride, int8_t* target,
                                          size_t target_stride) {
  __m128i a[16], b[16];
  for (int r = 0; r < 16; ++r) {
    const __m128i* row = reinterpret_cast<const __m128i*>(source + r * source_stride);
    a[r] = r >= kRows ? _mm_setzero_si128() : kColumns == 16 ? _mm_loadu_si128(row) : _mm_loadl_epi64(row);
  }
  // Interleaving row r with row r + 8 four times over moves byte (r, c) to (c, r).
  for (int round = 0; round < 4; ++round) {
    for (int r = 0; r < 8; ++r) {
      b[2 * r] = _mm_unpacklo_epi8(a[r], a[r + 8]);
      b[2 * r + 1] = _mm_unpackhi_epi8(a[r], a[r + 8]);
    }
    std::memcpy(a, b, sizeof(a));
  }
  for (int c = 0; c < kColumns; ++c) {
    __m128i* row = reinterpret_cast<__m128i*>(target + c * target_stride);
    if constexpr (kRows == 16) {
      _mm_storeu_si128(row, a[c]);
    } else {
      _mm_storel_epi64(row, a[c]);
    }
  }
}

// A strip of kRows rows.
template <int kRows>
BITFLEET_AVX2 inline void transpose_rows(const int8_t* source, size_t source_stride, int columns, int8_t* target,
                                         size_t target_stride) {
  int c = 0;
  for (; c + 16 <= columns; c += 16) {
    transpose_block<kRows, 16>(source + c, source_stride, target + c * target_stride, target_stride);
  }
  if (c + 8 <= columns) {
    transpose_block<kRows, 8>(source + c, source_stride, target + c * target_stride, target_stride);
    c += 8;
  }
  if (c < columns && columns >= 8) {  // the last ones again, with those before them
    c = columns - 8;
    transpose_block<kRows, 8>(source + c, source_stride, target + c * target_stride, target_stride);
  } else if (c < columns) {
    portable::transpose_bytes(source + c, source_stride, kRows, columns - c, target + c * target_stride, target_stride);
  }
}

}  // namespace

BITFLEET_AVX2 void transpose_bytes(const int8_t* source, size_t source_stride, int rows, int columns, int8_t* target,
                                   size_t target_stride) {
  int r = 0;
  for (; r + 16 <= rows; r += 16) {
    transpose_rows<16>(source + r * source_stride, source_stride, columns, target + r, target_stride);
  }
  if (r + 8 <= rows) {
    transpose_rows<8>(source + r * source_stride, source_stride, columns, target + r, target_stride);
    r += 8;
  }
  if (r < rows && rows >= 8) {
    r = rows - 8;
    transpose_rows<8>(source + r * source_stride, source_stride, columns, target + r, target_stride);
  } else if (r < rows) {
    portable::transpose_bytes(source + r * source_stride, source_stride, rows - r, columns, target + r, target_stride);
  }
}

namespace {

BITFLEET_AVX2 inline void transpose_4x4(const uint64_t* source, size_t source_stride, uint64_t* target,
                                        size_t target_stride) {
  __m256i a[4];
  for (int r = 0; r < 4; ++r) a[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + r * source_stride));
  const __m256i low[2] = {_mm256_unpacklo_epi64(a[0], a[1]), _mm256_unpacklo_epi64(a[2], a[3])};
  const __m256i high[2] = {_mm256_unpackhi_epi64(a[0], a[1]), _mm256_unpackhi_epi64(a[2], a[3])};
  const __m256i columns[4] = {
      _mm256_permute2x128_si256(low[0], low[1], 0x20), _mm256_permute2x128_si256(high[0], high[1], 0x20),
      _mm256_permute2x128_si256(low[0], low[1], 0x31), _mm256_permute2x128_si256(high[0], high[1], 0x31)};
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + c * target_stride), columns[c]);
  }
}

}  // namespace

BITFLEET_AVX2 void transpose_words(const uint64_t* source, size_t source_stride, int rows, int columns,
                                   uint64_t* target, size_t target_stride) {
  loops::transpose_tiles<4, transpose_4x4, portable::transpose_words>(source, source_stride, rows, columns, target,
                                                                      target_stride);
}

namespace {

// Two words of four pixels: those of the first and third in one vector, of the second and fourth in another.
BITFLEET_AVX2 inline void split_2x4(const uint64_t* source, size_t step, uint64_t* target, size_t plane_stride) {
  const auto pair = [&](int first) __attribute__((target("avx2"))) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + first * step));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + (first + 2) * step));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  };
  const __m256i even = pair(0), odd = pair(1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm256_unpacklo_epi64(even, odd));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + plane_stride), _mm256_unpackhi_epi64(even, odd));
}

BITFLEET_AVX2 inline void copy_4(const uint64_t* source, size_t, uint64_t* target, size_t) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}

// kTile for four pixels at once; the last four overlap those before them.
template <int kWords, auto kTile>
BITFLEET_AVX2 inline void split_words(const uint64_t* source, size_t step, int count, uint64_t* target,
                                      size_t plane_stride) {
  if (count < 4) {
    for (int i = 0; i < count; ++i) {
      for (int w = 0; w < kWords; ++w) target[w * plane_stride + i] = source[i * step + w];
    }
    return;
  }
  int i = 0;
  for (; i + 4 <= count; i += 4) kTile(source + i * step, step, target + i, plane_stride);
  if (i < count) kTile(source + (count - 4) * step, step, target + (count - 4), plane_stride);
}

BITFLEET_AVX2 inline void split_pixels(const uint64_t* source, size_t step, size_t words, int count, uint64_t* target,
                                       size_t plane_stride) {
  if (step == 1) return split_words<1, copy_4>(source, step, count, target, plane_stride);
  size_t w = 0;
  for (; w + 2 <= words; w += 2) {
    split_words<2, split_2x4>(source + w, step, count, target + w * plane_stride, plane_stride);
  }
  if (w < words) {
    for (int i = 0; i < count; ++i) target[w * plane_stride + i] = source[i * step + w];
  }
}

}  // namespace

BITFLEET_AVX2 void gather_planes(const uint64_t* map, size_t words, const PixelWindow& window, uint64_t* planes,
                                 size_t plane_stride) {
  loops::gather_planes<split_pixels>(map, words, window, planes, plane_stride);
}

}  // namespace bitfleet::avx2
#endif
