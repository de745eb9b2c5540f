// Two bits in 16, a column of the word's lower half and one of its upper half, and rows of g as they are. Vectors of
// the compiler's own, since it has the instructions for them on every processor; and a check of memory, where one is
// compiled in, is paid once a vector.
#include <cstring>

#include "bnncore/sign_gemm.h"

namespace bitfleet::portable {

namespace {

using Lanes = uint16_t __attribute__((vector_size(16)));
constexpr int kHalf = kColumnBlock / 2;
constexpr int kVectors = kHalf * sizeof(uint16_t) / sizeof(Lanes);

}  // namespace

size_t sign_bits_bytes(int depth) { return most_sign_bits_bytes(depth); }

void sign_expand_bits(const uint64_t* bits, int depth, uint8_t* expanded) {
  for (int j = 0; j < depth; ++j) {
    uint16_t pairs[kHalf];
    for (int k = 0; k < kHalf; ++k) {
      pairs[k] = static_cast<uint16_t>((bits[j] >> k & 1u) | (bits[j] >> (k + kHalf) & 1u) << 8);
    }
    std::memcpy(expanded + j * kColumnBlock, pairs, sizeof(pairs));
  }
}

void sign_expand_rows(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded) {
  for (int r = 0; r < rows; ++r) {
    std::memcpy(expanded + r * sign_row_bytes(depth), g + r * g_stride, static_cast<size_t>(depth));
  }
}

void sign_accumulate(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks, int32_t* out,
                     size_t out_stride, size_t block_stride, bool adds) {
  for (int b = 0; b < blocks; ++b, bits += sign_bits_bytes(depth), out += block_stride) {
    for (int r = 0; r < row_count; ++r) {
      const int8_t* g = reinterpret_cast<const int8_t*>(rows + r * sign_row_bytes(depth));
      Lanes low[kVectors] = {}, high[kVectors] = {};
      for (int j = 0; j < depth; ++j) {
        const uint16_t value = static_cast<uint16_t>(g[j]);  // modulo 2^16, and so are the sums, which fit int16
        for (int v = 0; v < kVectors; ++v) {
          Lanes pairs;
          std::memcpy(&pairs, bits + j * kColumnBlock + v * sizeof(Lanes), sizeof(Lanes));
          low[v] += value * (pairs & 1);
          high[v] += value * (pairs >> 8);
        }
      }
      int16_t sums[kColumnBlock];
      std::memcpy(sums, low, sizeof(low));
      std::memcpy(sums + kHalf, high, sizeof(high));
      int32_t* target = out + r * out_stride;
      for (int k = 0; k < kColumnBlock; ++k) target[k] = (adds ? target[k] : 0) + sums[k];
    }
  }
}

}  // namespace bitfleet::portable
