// SDOT multiplies four gradients by the bits of four rows, as bytes of 0 or 1, in each of four columns: 16 products an
// instruction, where the look-ups of neon.cc come to 12.8.
#if defined(__aarch64__)
#include <cstring>

#include "../bits_neon.h"
#include "bnncore/sign_gemm.h"

namespace bitfleet::neon_dotprod {

#define BITFLEET_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))

namespace {

constexpr int kQuadBytes = 4 * kColumnBlock;

// kRows rows by 16 columns.
template <int kRows>
BITFLEET_DOTPROD void accumulate(const uint8_t* rows, size_t row_bytes, int quads, const uint8_t* bits, int32_t* out,
                                 size_t out_stride, bool adds) {
  int32x4_t sums[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 4; ++v) {
      sums[r][v] = adds ? vld1q_s32(out + r * out_stride + 4 * v) : vdupq_n_s32(0);
    }
  }
  for (int q = 0; q < quads; ++q, bits += kQuadBytes, rows += 4) {
    int8x16_t columns[4];
    for (int v = 0; v < 4; ++v) columns[v] = vreinterpretq_s8_u8(vld1q_u8(bits + 16 * v));
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, rows + r * row_bytes, sizeof(four));
      const int8x16_t g = vreinterpretq_s8_s32(vdupq_n_s32(four));
      for (int v = 0; v < 4; ++v) sums[r][v] = vdotq_s32(sums[r][v], columns[v], g);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 4; ++v) vst1q_s32(out + r * out_stride + 4 * v, sums[r][v]);
  }
}

using Accumulate = void (*)(const uint8_t*, size_t, int, const uint8_t*, int32_t*, size_t, bool);
constexpr int kRowsAtOnce = 6;
constexpr Accumulate kAccumulate[kRowsAtOnce + 1] = {nullptr,       accumulate<1>, accumulate<2>, accumulate<3>,
                                                     accumulate<4>, accumulate<5>, accumulate<6>};

}  // namespace

size_t sign_bits_bytes(int depth) { return most_sign_bits_bytes(depth); }

// Lane k of quad q holds the bits of rows 4 q .. 4 q + 3 at column k as bytes of 0 or 1.
void sign_expand_bits(const uint64_t* bits, int depth, uint8_t* expanded) {
  for (int j = 0; j < depth; j += 4) {
    uint64_t row[4] = {};
    for (int i = 0; i < 4 && j + i < depth; ++i) row[i] = bits[j + i];
    for (int k = 0; k < kColumnBlock; k += 16, expanded += 64) {
      uint8x16x4_t bytes;
      for (int i = 0; i < 4; ++i) {
        bytes.val[i] = vandq_u8(neon::bits_to_mask(static_cast<uint16_t>(row[i] >> k)), vdupq_n_u8(1));
      }
      vst4q_u8(expanded, bytes);
    }
  }
}

void sign_expand_rows(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded) {
  const size_t size = static_cast<size_t>(depth), padded = (size + 3) / 4 * 4;
  for (int r = 0; r < rows; ++r, g += g_stride, expanded += sign_row_bytes(depth)) {
    std::memcpy(expanded, g, size);
    std::memset(expanded + size, 0, padded - size);
  }
}

BITFLEET_DOTPROD void sign_accumulate(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks,
                                      int32_t* out, size_t out_stride, size_t block_stride, bool adds) {
  const size_t row_bytes = sign_row_bytes(depth);
  for (int r = 0, some; r < row_count; r += some) {
    some = row_count - r < kRowsAtOnce ? row_count - r : kRowsAtOnce;
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* columns = bits + b * sign_bits_bytes(depth);
      int32_t* target = out + r * out_stride + b * block_stride;
      for (int k = 0; k < kColumnBlock; k += 16) {
        kAccumulate[some](rows + r * row_bytes, row_bytes, (depth + 3) / 4, columns + 4 * k, target + k, out_stride,
                          adds);
      }
    }
  }
}

}  // namespace bitfleet::neon_dotprod
#endif
