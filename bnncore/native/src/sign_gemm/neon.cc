// Look-ups instead of products: integer multiplication is slow on the A53 and A72, TBL is not. Four gradients g0 .. g3
// have 16 sums over subsets; TBL looks up 16 columns' sums by their four bits. A sum takes ten bits, so the low and the
// high bytes have a table each. The high bytes, at least -2 and at most 1, add up in bytes: 60 groups stay above -128.
// The low ones are added to 16 bits: 60 * 255 = 15,300. Five instructions for 64 products; together, modulo 2^16, the
// two make a sum that stays below 240 * 127 = 30,480.
#if defined(__aarch64__)
#include <cstring>

#include "../bits_neon.h"
#include "bnncore/sign_gemm.h"

namespace bitfleet::neon {

namespace {

constexpr int kGroup = 4;        // gradients in a table
constexpr int kTableBytes = 32;  // 16 low bytes, 16 high ones
static_assert(kSignGemmDepth / kGroup * 2 <= 128, "high bytes would overflow");

int groups_of(int depth) { return (depth + kGroup - 1) / kGroup; }

// Entry i is the sum of those gradients whose bit is set in i.
void make_table(const int8_t* g, uint8_t* table) {
  const int16x8_t first = {0, 1, 0, 1, 0, 1, 0, 1}, second = {0, 0, 1, 1, 0, 0, 1, 1}, third = {0, 0, 0, 0, 1, 1, 1, 1};
  int16x8_t without = vmulq_n_s16(first, g[0]);
  without = vmlaq_n_s16(without, second, g[1]);
  without = vmlaq_n_s16(without, third, g[2]);
  const uint8x16_t low = vreinterpretq_u8_s16(without);
  const uint8x16_t high = vreinterpretq_u8_s16(vaddq_s16(without, vdupq_n_s16(g[3])));
  vst1q_u8(table, vuzp1q_u8(low, high));
  vst1q_u8(table + 16, vuzp2q_u8(low, high));
}

void put(int32_t* out, int16x8_t sums, bool adds) {
  const int32x4_t zero = vdupq_n_s32(0);
  vst1q_s32(out, vaddw_s16(adds ? vld1q_s32(out) : zero, vget_low_s16(sums)));
  vst1q_s32(out + 4, vaddw_high_s16(adds ? vld1q_s32(out + 4) : zero, sums));
}

// kRows rows by 32 columns.
template <int kRows>
void accumulate(const uint8_t* tables, size_t row_bytes, int groups, const uint8_t* indices, int32_t* out,
                size_t out_stride, bool adds) {
  uint16x8_t low[kRows][4];
  int8x16_t high[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 4; ++v) low[r][v] = vdupq_n_u16(0);
    for (int v = 0; v < 2; ++v) high[r][v] = vdupq_n_s8(0);
  }
  for (int q = 0; q < groups; ++q, indices += kColumnBlock, tables += kTableBytes) {
    const uint8x16_t columns[2] = {vld1q_u8(indices), vld1q_u8(indices + 16)};
    for (int r = 0; r < kRows; ++r) {
      const uint8x16_t low_table = vld1q_u8(tables + r * row_bytes);
      const int8x16_t high_table = vreinterpretq_s8_u8(vld1q_u8(tables + r * row_bytes + 16));
      for (int v = 0; v < 2; ++v) {
        const uint8x16_t found = vqtbl1q_u8(low_table, columns[v]);
        low[r][2 * v] = vaddw_u8(low[r][2 * v], vget_low_u8(found));
        low[r][2 * v + 1] = vaddw_high_u8(low[r][2 * v + 1], found);
        high[r][v] = vaddq_s8(high[r][v], vqtbl1q_s8(high_table, columns[v]));
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      int32_t* target = out + r * out_stride + 16 * v;
      const int16x8_t above = vshll_n_s8(vget_low_s8(high[r][v]), 8), beyond = vshll_high_n_s8(high[r][v], 8);
      put(target, vaddq_s16(vreinterpretq_s16_u16(low[r][2 * v]), above), adds);
      put(target + 8, vaddq_s16(vreinterpretq_s16_u16(low[r][2 * v + 1]), beyond), adds);
    }
  }
}

using Accumulate = void (*)(const uint8_t*, size_t, int, const uint8_t*, int32_t*, size_t, bool);
constexpr int kRowsAtOnce = 3;  // 18 accumulators; g++ 12 cannot keep those of four rows in registers
constexpr Accumulate kAccumulate[kRowsAtOnce + 1] = {nullptr, accumulate<1>, accumulate<2>, accumulate<3>};

}  // namespace

size_t sign_bits_bytes(int depth) { return static_cast<size_t>(groups_of(depth)) * kColumnBlock; }

// Byte k of group q: the bits of rows 4 q .. 4 q + 3 at column k.
void sign_expand_bits(const uint64_t* bits, int depth, uint8_t* expanded) {
  for (int j = 0; j < depth; j += kGroup, expanded += kColumnBlock) {
    const int rows = depth - j < kGroup ? depth - j : kGroup;
    for (int k = 0; k < kColumnBlock; k += 16) {
      uint8x16_t index = vdupq_n_u8(0);
      for (int i = 0; i < rows; ++i) {
        const uint8x16_t set = bits_to_mask(static_cast<uint16_t>(bits[j + i] >> k));
        index = vorrq_u8(index, vandq_u8(set, vdupq_n_u8(static_cast<uint8_t>(1 << i))));
      }
      vst1q_u8(expanded + k, index);
    }
  }
}

void sign_expand_rows(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded) {
  const int whole = depth / kGroup;
  const size_t left = static_cast<size_t>(depth % kGroup);
  for (int r = 0; r < rows; ++r, g += g_stride, expanded += sign_row_bytes(depth)) {
    for (int q = 0; q < whole; ++q) make_table(g + kGroup * q, expanded + kTableBytes * q);
    if (left > 0) {
      int8_t last[kGroup] = {};
      std::memcpy(last, g + kGroup * whole, left);
      make_table(last, expanded + kTableBytes * whole);
    }
  }
}

void sign_accumulate(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks, int32_t* out,
                     size_t out_stride, size_t block_stride, bool adds) {
  const size_t row_bytes = sign_row_bytes(depth);
  for (int r = 0, some; r < row_count; r += some) {
    some = row_count - r < kRowsAtOnce ? row_count - r : kRowsAtOnce;
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* columns = bits + b * sign_bits_bytes(depth);
      int32_t* target = out + r * out_stride + b * block_stride;
      for (int k = 0; k < kColumnBlock; k += 32) {
        kAccumulate[some](rows + r * row_bytes, row_bytes, groups_of(depth), columns + k, target + k, out_stride, adds);
      }
    }
  }
}

}  // namespace bitfleet::neon
#endif
