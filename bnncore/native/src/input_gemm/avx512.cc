// VPDPBUSD: 64 products of unsigned input bytes and signed ones an instruction, four of them summed into each of 16
// lanes. Forward the lanes are weight rows, backward columns of the input.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "../unroll.h"
#include "bnncore/input_gemm.h"
#include "quads_inl.h"
#include "widths_inl.h"

namespace bitfleet::avx512 {

namespace {

constexpr int kLanes = 16;

// a[p] lane r -> a[r] lane p.
BITFLEET_AVX512 inline void transpose_16x16(__m512i a[kLanes]) {
  __m512i b[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // a[4 j + i] holds rows i, 4 + i, 8 + i, 12 + i of positions 4 j .. 4 j + 3
    const __m512i low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88), high = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    b[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    b[8 + i] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    b[4 + i] = _mm512_shuffle_i32x4(high, high2, 0x88);
    b[12 + i] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
  for (int i = 0; i < kLanes; ++i) a[i] = b[i];
}

template <typename Y>
BITFLEET_AVX512 inline void store(Y* y, __mmask16 mask, __m512i values) {
  if constexpr (sizeof(Y) == sizeof(int16_t)) {
    _mm512_mask_cvtepi32_storeu_epi16(y, mask, values);
  } else {
    _mm512_mask_storeu_epi32(y, mask, values);
  }
}

constexpr int kVectors = kColumnBlock / kLanes;

template <int kRows>
BITFLEET_AVX512 inline void grad_rows(const int8_t* g, size_t g_stride, int depth, const uint8_t* expanded,
                                      int32_t* out) {
  __m512i sum[kRows][kVectors];
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_loadu_si512(out + r * kColumnBlock + kLanes * v);
  }
  const auto add_quad = [&](const int8_t* quad, size_t stride, const uint8_t* columns) BITFLEET_AVX512 {
    __m512i u[kVectors];
    BITFLEET_UNROLL
    for (int v = 0; v < kVectors; ++v) u[v] = _mm512_load_si512(columns + 64 * v);
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, quad + r * stride, sizeof(four));
      const __m512i both = _mm512_set1_epi32(four);
      BITFLEET_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], u[v], both);
    }
  };
  const int whole = depth / 4 * 4;
  for (int j = 0; j < whole; j += 4) add_quad(g + j, g_stride, expanded + size_t(j) * kColumnBlock);
  if (whole < depth) {
    int8_t last[kRows][4] = {};
    BITFLEET_UNROLL
    for (int r = 0; r < kRows; ++r) std::memcpy(last[r], g + r * g_stride + whole, static_cast<size_t>(depth - whole));
    add_quad(last[0], 4, expanded + size_t(whole) * kColumnBlock);
  }
  BITFLEET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITFLEET_UNROLL
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(out + r * kColumnBlock + kLanes * v, sum[r][v]);
  }
}

// Where kCount positions lie: u_stride apart.
template <int kCount>
struct Positions {
  static_assert(kCount % 4 == 0);
  const uint8_t* fours[kCount / 4];  // the first of each four: addresses of the others need no register of their own
  size_t stride, three;

  Positions(const uint8_t* u, size_t u_stride) : stride(u_stride), three(3 * u_stride) {
    for (int i = 0; i < kCount / 4; ++i) fours[i] = u + size_t(4 * i) * u_stride;
  }

  // The four bytes from byte k on of position p.
  BITFLEET_AVX512 __m512i four(int p, size_t k) const {
    const uint8_t* base = fours[p / 4] + k;
    int32_t bytes;
    std::memcpy(&bytes, p % 4 == 3 ? base + three : base + size_t(p % 4) * stride, sizeof(bytes));
    return _mm512_set1_epi32(bytes);
  }
};

// Some positions only: past the end the last one again, computed and never stored.
struct SomePositions {
  const uint8_t* position[kLanes];

  SomePositions(const uint8_t* u, size_t u_stride, int some) {
    for (int p = 0; p < kLanes; ++p) position[p] = u + size_t(std::min(p, some - 1)) * u_stride;
  }

  BITFLEET_AVX512 __m512i four(int p, size_t k) const {
    int32_t bytes;
    std::memcpy(&bytes, position[p] + k, sizeof(bytes));
    return _mm512_set1_epi32(bytes);
  }
};

// Products of 16 rows with kCount positions, of which `some` are stored. Where they are few, every other quad has sums
// of its own: one after the other would wait for each other.
template <int kCount, typename Place, typename Y>
BITFLEET_AVX512 inline void positions(const Place& place, size_t segment_stride, int some, const int8_t* expanded,
                                      int rows, int segments, int width, Y* y, size_t y_stride) {
  constexpr int kChains = kCount >= 8 ? 1 : 2;
  __m512i sum[kLanes], more[kCount];
  BITFLEET_UNROLL
  for (int p = 0; p < kLanes; ++p) sum[p] = _mm512_setzero_si512();
  BITFLEET_UNROLL
  for (int p = 0; p < kCount; ++p) more[p] = _mm512_setzero_si512();
  const int8_t* quad = expanded;
  for (int s = 0; s < segments; ++s) {
    size_t k = s * segment_stride;
    const size_t end = k + static_cast<size_t>(width);
    for (; kChains > 1 && k + 4 < end; k += 8, quad += 128) {
      const __m512i weights = _mm512_load_si512(quad), next = _mm512_load_si512(quad + 64);
      BITFLEET_UNROLL
      for (int p = 0; p < kCount; ++p) {
        sum[p] = _mm512_dpbusd_epi32(sum[p], place.four(p, k), weights);
        more[p] = _mm512_dpbusd_epi32(more[p], place.four(p, k + 4), next);
      }
    }
    for (; k < end; k += 4, quad += 64) {
      const __m512i weights = _mm512_load_si512(quad);
      BITFLEET_UNROLL
      for (int p = 0; p < kCount; ++p) sum[p] = _mm512_dpbusd_epi32(sum[p], place.four(p, k), weights);
    }
  }
  const __m512i offset = _mm512_load_si512(quad);
  BITFLEET_UNROLL
  for (int p = 0; p < kCount; ++p) {
    if (kChains > 1) sum[p] = _mm512_add_epi32(sum[p], more[p]);
    sum[p] = _mm512_sub_epi32(_mm512_add_epi32(sum[p], sum[p]), offset);
  }
  transpose_16x16(sum);
  const __mmask16 mask = static_cast<__mmask16>((1u << some) - 1);
  for (int r = 0; r < rows; ++r) store(y + r * y_stride, mask, sum[r]);
}

template <typename Y>
BITFLEET_AVX512 void gemm(const uint8_t* u, size_t u_stride, size_t segment_stride, int count, const int8_t* expanded,
                          int rows, int segments, int width, Y* y, size_t y_stride) {
  const auto products = [&]<int kCount>(const auto& place, int p) BITFLEET_AVX512 {
    positions<kCount>(place, segment_stride, std::min(kCount, count - p), expanded, rows, segments, width, y + p,
                      y_stride);
  };
  int p = 0;
  for (; p + kLanes <= count; p += kLanes) {
    products.template operator()<kLanes>(Positions<kLanes>(u + p * u_stride, u_stride), p);
  }
  if (p + 8 < count) {
    products.template operator()<kLanes>(SomePositions(u + p * u_stride, u_stride, count - p), p);
    return;
  }
  for (; p + 4 <= count; p += 4) products.template operator()<4>(Positions<4>(u + p * u_stride, u_stride), p);
  if (p < count) products.template operator()<4>(SomePositions(u + p * u_stride, u_stride, count - p), p);
}

}  // namespace

// The form of loops::expand_quads; one run of bits is expanded 16 rows at a time.
BITFLEET_AVX512 void input_expand(const uint64_t* w, size_t w_stride, int rows, int segments, int width,
                                  int8_t* expanded) {
  if (segments > 1) return loops::expand_quads(w, w_stride, rows, segments, width, expanded);
  const __mmask16 in_use = static_cast<__mmask16>((1u << rows) - 1);
  const __m512i offsets = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(static_cast<int>(2 * w_stride)));
  // VPMULTISHIFTQB takes the eight bits from any bit of a 64-bit lane on; the upper row of a lane starts at bit 32.
  const __m512i first_bits = _mm512_set1_epi64(0x2322212003020100);
  const __m512i one = _mm512_set1_epi8(1), minus = _mm512_set1_epi8(-1);
  const __mmask64 lanes = _mm512_movepi8_mask(_mm512_maskz_set1_epi32(in_use, -1));
  __m512i sums = _mm512_setzero_si512();
  for (int k = 0; k < width; k += 32) {
    const __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), in_use, offsets,
                                                      reinterpret_cast<const int32_t*>(w) + k / 32, 4);
    for (int q = 0; q < 8 && k + 4 * q < width; ++q, expanded += 64) {
      const __m512i bits = _mm512_multishift_epi64_epi8(
          _mm512_add_epi8(first_bits, _mm512_set1_epi8(static_cast<int8_t>(4 * q))), words);
      const int left = std::min(4, width - k - 4 * q);
      const __mmask64 valid = lanes & ((1u << left) - 1) * 0x1111111111111111ull;
      const __m512i signs = _mm512_mask_blend_epi8(_mm512_test_epi8_mask(bits, one), one, minus);
      const __m512i quad = _mm512_maskz_mov_epi8(valid, signs);
      _mm512_store_si512(expanded, quad);
      sums = _mm512_dpbusd_epi32(sums, one, quad);
    }
  }
  _mm512_store_si512(expanded, _mm512_mullo_epi32(sums, _mm512_set1_epi32(255)));
}

BITFLEET_DEFINE_INPUT_GEMM_WIDTHS(BITFLEET_AVX512)

// Four positions share a lane, column by column.
BITFLEET_AVX512 void input_grad(const int8_t* g, size_t g_stride, int rows, int depth, const uint8_t* u,
                                size_t u_stride, uint8_t* expanded, int32_t* out) {
  for (int j = 0; j < depth; j += 4) {
    __m512i row[4];
    for (int i = 0; i < 4; ++i) {
      row[i] = j + i < depth ? _mm512_loadu_si512(u + (j + i) * u_stride) : _mm512_setzero_si512();
    }
    const __m512i low[2] = {_mm512_unpacklo_epi8(row[0], row[1]), _mm512_unpacklo_epi8(row[2], row[3])};
    const __m512i high[2] = {_mm512_unpackhi_epi8(row[0], row[1]), _mm512_unpackhi_epi8(row[2], row[3])};
    // Columns 16 l + 4 v .. 16 l + 4 v + 3 in part l of vector v: the parts are put in order.
    const __m512i a = _mm512_unpacklo_epi16(low[0], low[1]), b = _mm512_unpackhi_epi16(low[0], low[1]);
    const __m512i c = _mm512_unpacklo_epi16(high[0], high[1]), d = _mm512_unpackhi_epi16(high[0], high[1]);
    const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
    const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
    uint8_t* target = expanded + size_t(j) * kColumnBlock;
    _mm512_store_si512(target, _mm512_shuffle_i32x4(ab_low, cd_low, 0x88));
    _mm512_store_si512(target + 64, _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd));
    _mm512_store_si512(target + 128, _mm512_shuffle_i32x4(ab_high, cd_high, 0x88));
    _mm512_store_si512(target + 192, _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd));
  }
  int r = 0;
  for (; r + 4 <= rows; r += 4) grad_rows<4>(g + r * g_stride, g_stride, depth, expanded, out + r * kColumnBlock);
  for (; r < rows; ++r) grad_rows<1>(g + r * g_stride, g_stride, depth, expanded, out + r * kColumnBlock);
}

}  // namespace bitfleet::avx512
#endif
