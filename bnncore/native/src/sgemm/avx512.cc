// Twelve rows by two panels: 24 sums of 16 lanes hide the latency of VFMADD231PS where a core starts two of 512 bits a
// cycle, and each broadcast of a serves both panels.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include <array>
#include <utility>

#include "../unroll.h"
#include "bnncore/float_kernels.h"
#include "bnncore/sgemm.h"

namespace bitfleet::avx512 {

namespace {

constexpr int kTileRows = 12;

// kRows rows of c by kPanels panels of b.
template <int kRows, int kPanels>
BITFLEET_AVX512 void multiply_tile(const float* a, size_t a_stride, const float* panel, int depth, float* c,
                                   size_t c_stride, bool add) {
  const size_t next = static_cast<size_t>(depth) * kSgemmColumns;
  const float* fours[(kRows + 3) / 4];  // the first of each four rows: the others' addresses need no register
  for (int i = 0; i < kRows; i += 4) fours[i / 4] = a + i * a_stride;
  const size_t three = 3 * a_stride;
  __m512 sums[kRows][kPanels];
  BITFLEET_UNROLL
  for (int i = 0; i < kRows; ++i) {
    BITFLEET_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      sums[i][p] = add ? _mm512_loadu_ps(c + i * c_stride + p * kSgemmColumns) : _mm512_setzero_ps();
    }
  }
  for (int k = 0; k < depth; ++k, panel += kSgemmColumns) {
    __m512 columns[kPanels];
    BITFLEET_UNROLL
    for (int p = 0; p < kPanels; ++p) columns[p] = _mm512_loadu_ps(panel + p * next);
    BITFLEET_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const float* base = fours[i / 4] + k;
      const __m512 factor = _mm512_set1_ps(i % 4 == 3 ? base[three] : base[size_t(i % 4) * a_stride]);
      BITFLEET_UNROLL
      for (int p = 0; p < kPanels; ++p) sums[i][p] = _mm512_fmadd_ps(factor, columns[p], sums[i][p]);
    }
  }
  BITFLEET_UNROLL
  for (int i = 0; i < kRows; ++i) {
    BITFLEET_UNROLL
    for (int p = 0; p < kPanels; ++p) _mm512_storeu_ps(c + i * c_stride + p * kSgemmColumns, sums[i][p]);
  }
}

using Tile = void (*)(const float*, size_t, const float*, int, float*, size_t, bool);

// The tiles of 1 to kTileRows rows, each at its number.
template <int kPanels, size_t... kRows>
constexpr std::array<Tile, kTileRows + 1> tiles(std::index_sequence<kRows...>) {
  return {nullptr, multiply_tile<static_cast<int>(kRows) + 1, kPanels>...};
}
constexpr auto kSingle = tiles<1>(std::make_index_sequence<kTileRows>());
constexpr auto kDouble = tiles<2>(std::make_index_sequence<kTileRows>());

void sgemm(const float* a, size_t a_stride, int rows, const float* b, int depth, int columns, float* c, size_t c_stride,
           bool add) {
  for (int j = 0; j < columns;) {
    const bool is_pair = j + kSgemmColumns < columns;
    const float* panel = b + static_cast<size_t>(j) * static_cast<size_t>(depth);
    for (int i = 0; i < rows; i += kTileRows) {
      const int some = rows - i < kTileRows ? rows - i : kTileRows;
      (is_pair ? kDouble : kSingle)[static_cast<size_t>(some)](a + i * a_stride, a_stride, panel, depth,
                                                               c + i * c_stride + j, c_stride, add);
    }
    j += is_pair ? 2 * kSgemmColumns : kSgemmColumns;
  }
}

}  // namespace

// All else is as fast at 256 bits: it waits for memory, or for one chain of additions a channel.
const FloatKernels float_kernels = [] {
  FloatKernels kernels = avx2::float_kernels;
  kernels.sgemm = sgemm;
  return kernels;
}();

}  // namespace bitfleet::avx512
#endif
