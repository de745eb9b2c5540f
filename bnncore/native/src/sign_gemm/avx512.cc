// Look-ups instead of products. Five gradients g0 .. g4 have 32 sums over subsets; VPERMB looks up 32 columns' sums in
// such a table of int16, whose index is the column's five bits: 160 exact products for one permutation and one
// addition, where VPDPBUSD does 64 (docs/kernels.md). A sum is two bytes, which VPERMB finds by the numbers of both;
// VPERMW, which takes the sum's, costs Intel's processors two permutations. 48 sums of five stay below 240 * 127 =
// 30,480.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include <cstring>

#include "../unroll.h"
#include "bnncore/sign_gemm.h"

namespace bitfleet::avx512 {

namespace {

// Bit i of a table's index selects gradient kOrder[i]: VPACKSSDW makes the third bit the odd one out.
constexpr int kOrder[kSignGroup] = {0, 1, 4, 2, 3};

struct Constants {
  alignas(64) uint8_t rows_to_bytes[64];  // for the bit matrix of 8 columns: byte 6 - i comes from row kOrder[i]
  alignas(64) uint8_t twice[2][64];       // columns 0-31, and 32-63, each to two bytes
  alignas(64) uint8_t subsets[64];        // lane l, bytes 0-3: which of g0 .. g3 are in the sum
};

constexpr Constants make_constants() {
  Constants c{};
  for (int b = 0; b < 8; ++b) {
    for (int i = 0; i < 8; ++i) c.rows_to_bytes[8 * b + i] = static_cast<uint8_t>(8 * 7 + b);  // a row of zeros
    for (int i = 0; i < kSignGroup; ++i) c.rows_to_bytes[8 * b + 6 - i] = static_cast<uint8_t>(8 * kOrder[i] + b);
  }
  for (int k = 0; k < 64; ++k) {
    c.twice[0][k] = static_cast<uint8_t>(k / 2);
    c.twice[1][k] = static_cast<uint8_t>(k / 2 + 32);
  }
  for (int lane = 0; lane < 16; ++lane) {
    for (int i = 0; i < 4; ++i) c.subsets[4 * lane + i] = static_cast<uint8_t>(lane >> i & 1);
  }
  return c;
}

constexpr Constants kConstants = make_constants();

BITFLEET_AVX512 inline void make_table(const int8_t* g, uint8_t* table) {
  int32_t first, last;  // g0 .. g3, and g1 .. g4
  std::memcpy(&first, g, sizeof(first));
  std::memcpy(&last, g + 1, sizeof(last));
  const __m512i subsets = _mm512_load_si512(kConstants.subsets);
  const __m512i without = _mm512_dpbusd_epi32(_mm512_setzero_si512(), subsets, _mm512_set1_epi32(first));
  const __m512i with = _mm512_dpbusd_epi32(without, _mm512_set1_epi32(0x01000000), _mm512_set1_epi32(last));
  _mm512_store_si512(table, _mm512_packs_epi32(without, with));
}

BITFLEET_AVX512 inline void put(int32_t* out, __m512i sums, bool adds) {
  __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums));
  __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sums, 1));
  if (adds) {
    low = _mm512_add_epi32(low, _mm512_loadu_si512(out));
    high = _mm512_add_epi32(high, _mm512_loadu_si512(out + 16));
  }
  _mm512_storeu_si512(out, low);
  _mm512_storeu_si512(out + 16, high);
}

// kRows rows by kBlocks blocks of columns. A table that comes from the second cache is read once for 4 look-ups where
// there are two blocks.
template <int kRows, int kBlocks>
BITFLEET_AVX512 inline void accumulate(const uint8_t* tables, size_t row_bytes, int groups, const uint8_t* indices,
                                       size_t bits_bytes, int32_t* out, size_t out_stride, size_t block_stride,
                                       bool adds) {
  __m512i low[kRows][kBlocks], high[kRows][kBlocks];
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int b = 0; b < kBlocks; ++b) low[r][b] = high[r][b] = _mm512_setzero_si512();
  }
  for (int q = 0; q < groups; ++q) {
    __m512i first[kBlocks], second[kBlocks];
    BITFLEET_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      first[b] = _mm512_load_si512(indices + b * bits_bytes + size_t{128} * q);
      second[b] = _mm512_load_si512(indices + b * bits_bytes + size_t{128} * q + 64);
    }
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512i table = _mm512_load_si512(tables + r * row_bytes + size_t{64} * q);
      BITFLEET_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        low[r][b] = _mm512_add_epi16(low[r][b], _mm512_permutexvar_epi8(first[b], table));
        high[r][b] = _mm512_add_epi16(high[r][b], _mm512_permutexvar_epi8(second[b], table));
      }
    }
  }
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      put(out + r * out_stride + b * block_stride, low[r][b], adds);
      put(out + r * out_stride + b * block_stride + 32, high[r][b], adds);
    }
  }
}

using Accumulate = void (*)(const uint8_t*, size_t, int, const uint8_t*, size_t, int32_t*, size_t, size_t, bool);
constexpr Accumulate kSingle[] = {nullptr,          accumulate<1, 1>, accumulate<2, 1>,
                                  accumulate<3, 1>, accumulate<4, 1>, accumulate<5, 1>,
                                  accumulate<6, 1>, accumulate<7, 1>, accumulate<8, 1>};
constexpr Accumulate kDouble[] = {nullptr, accumulate<1, 2>, accumulate<2, 2>, accumulate<3, 2>, accumulate<4, 2>};
constexpr int kSingleRows = 8, kDoubleRows = 4;

}  // namespace

size_t sign_bits_bytes(int depth) { return 2 * sign_row_bytes(depth); }  // two vectors of indices for each table

// Bytes 2 k and 2 k + 1 of vector h of group q: where the two bytes of the sum of column k + 32 h lie in its table.
BITFLEET_AVX512 void sign_expand_bits(const uint64_t* bits, int depth, uint8_t* expanded) {
  const __m512i gather = _mm512_load_si512(kConstants.rows_to_bytes);
  const __m512i low = _mm512_load_si512(kConstants.twice[0]), high = _mm512_load_si512(kConstants.twice[1]);
  const __m512i odd = _mm512_set1_epi16(0x0100);
  const __m512i identity = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201ull));
  for (int j = 0; j < depth; j += kSignGroup, expanded += 128) {
    const int left = depth - j < kSignGroup ? depth - j : kSignGroup;
    const __m512i rows = _mm512_maskz_loadu_epi64(static_cast<__mmask8>((1 << left) - 1), bits + j);
    const __m512i matrices = _mm512_permutexvar_epi8(gather, rows);
    const __m512i columns = _mm512_gf2p8affine_epi64_epi8(identity, matrices, 0);
    _mm512_store_si512(expanded, _mm512_or_si512(_mm512_permutexvar_epi8(low, columns), odd));
    _mm512_store_si512(expanded + 64, _mm512_or_si512(_mm512_permutexvar_epi8(high, columns), odd));
  }
}

BITFLEET_AVX512 void sign_expand_rows(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded) {
  const int whole = depth / kSignGroup;
  const int left = depth % kSignGroup;
  for (int r = 0; r < rows; ++r, g += g_stride) {
    for (int q = 0; q < whole; ++q, expanded += 64) make_table(g + kSignGroup * q, expanded);
    if (left > 0) {
      alignas(16) int8_t last[16];
      const __mmask16 in_use = static_cast<__mmask16>((1 << left) - 1);
      _mm_store_si128(reinterpret_cast<__m128i*>(last), _mm_maskz_loadu_epi8(in_use, g + kSignGroup * whole));
      make_table(last, expanded);
      expanded += 64;
    }
  }
}

BITFLEET_AVX512 void sign_accumulate(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks,
                                     int32_t* out, size_t out_stride, size_t block_stride, bool adds) {
  const size_t row_bytes = sign_row_bytes(depth), bits_bytes = sign_bits_bytes(depth);
  const int groups = static_cast<int>(row_bytes / 64);
  const auto run = [&](const Accumulate* kernels, int at_once) {
    for (int r = 0; r < row_count; r += at_once) {
      const int some = row_count - r < at_once ? row_count - r : at_once;
      kernels[some](rows + r * row_bytes, row_bytes, groups, bits, bits_bytes, out + r * out_stride, out_stride,
                    block_stride, adds);
    }
  };
  int b = 0;
  for (; b + 2 <= blocks; b += 2, bits += 2 * bits_bytes, out += 2 * block_stride) run(kDouble, kDoubleRows);
  if (b < blocks) run(kSingle, kSingleRows);
}

}  // namespace bitfleet::avx512
#endif
