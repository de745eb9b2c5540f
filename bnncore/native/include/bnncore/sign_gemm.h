// 8-bit integer x bit product: out[r][k] (+)= sum_j g[r][j] * bit(j, k) for blocks of 64 columns k.
//
// One kernel serves both backward products of a binary layer: with P such a sum over bits, where 1 means -1,
//   sum_j g[r][j] * sign(j, k) = sum_j g[r][j] - 2 P,
// and a tap in the padding, whose x is 0, is a clear bit whose g is left out of the first sum.
//   grad_x: r = positions, j = output channels, bits = packed weights
//   grad_w: r = output channels, j = positions of the batch, bits = packed activations
//
// Both sides are first brought into the form that `accumulate` reads: `expand_bits` once for any number of rows of g,
// `expand_rows` once for any number of blocks of columns. What the forms are is each instruction set's own affair
// (docs/kernels.md): bytes where the CPU multiplies bytes, tables of sums and indices into them where it looks up
// faster than it multiplies.
//
// |g| <= 127. All expanded data is 64-byte aligned. Exact while the sum of all depths * 127 < 2^31.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

inline constexpr int kColumnBlock = 64;     // columns k handled at once: those of a word
inline constexpr int kSignGemmDepth = 240;  // most rows j expanded at once; 240 * 127 fits int16
inline constexpr int kSignGroup = 5;        // gradients in one table of 32 sums, at most

// Bytes of expanded bits, at most, and of one expanded row of g.
constexpr size_t most_sign_bits_bytes(int depth) { return (size_t(depth) + 3) / 4 * 4 * kColumnBlock; }
constexpr size_t sign_row_bytes(int depth) { return (size_t(depth) + kSignGroup - 1) / kSignGroup * 64; }

// What a block of expanded bits takes here: a multiple of 64.
using SignBitsBytes = size_t (*)(int depth);

// bits: uint64 [depth <= kSignGemmDepth], column k of row j in bit k.
using SignExpandBits = void (*)(const uint64_t* bits, int depth, uint8_t* expanded);

// g: int8 [rows][g_stride]; expanded: [rows][sign_row_bytes(depth)].
using SignExpandRows = void (*)(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded);

// `rows` and `bits` [blocks][the kernels' sign_bits_bytes(depth)] as expanded, with the same depth. Column k of block b
// of row r is out[r * out_stride + b * block_stride + k], which is overwritten unless `adds`.
using SignAccumulate = void (*)(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks,
                                int32_t* out, size_t out_stride, size_t block_stride, bool adds);

#define BITFLEET_DECLARE(isa)                                                                                        \
  namespace isa {                                                                                                    \
  size_t sign_bits_bytes(int depth);                                                                                 \
  void sign_expand_bits(const uint64_t* bits, int depth, uint8_t* expanded);                                         \
  void sign_expand_rows(const int8_t* g, size_t g_stride, int rows, int depth, uint8_t* expanded);                   \
  void sign_accumulate(const uint8_t* rows, int row_count, int depth, const uint8_t* bits, int blocks, int32_t* out, \
                       size_t out_stride, size_t block_stride, bool adds);                                           \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
BITFLEET_DECLARE(avx512)
BITFLEET_DECLARE(neon)
BITFLEET_DECLARE(neon_dotprod)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
