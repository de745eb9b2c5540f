// 8-bit integers times bits, against plain sums.
#include "bnncore/sign_gemm.h"

#include "check.h"

namespace bitfleet::test {

namespace {

void check_product(const Kernels& kernels, int depth, int rows, int blocks, int kind, bool adds, Random& random) {
  const size_t size = static_cast<size_t>(depth), row_count = static_cast<size_t>(rows);
  const size_t block_count = static_cast<size_t>(blocks), bits_bytes = kernels.sign_bits_bytes(depth);
  CHECK(bits_bytes <= most_sign_bits_bytes(depth) && bits_bytes % 64 == 0);
  // Blocks side by side in a row, or rows side by side in a block.
  const bool rows_first = kind % 2 != 0;
  const size_t out_stride = rows_first ? kColumnBlock : block_count * kColumnBlock + 5;
  const size_t block_stride = rows_first ? row_count * kColumnBlock + 3 : kColumnBlock;
  const size_t g_stride = size + 3;
  Array<int8_t> g((row_count - 1) * g_stride + size, 1);
  Array<uint64_t> bits(block_count * size, 1);
  g.generate([&] { return kind == 1 ? 127 : kind == 2 ? -127 : random.between(-127, 127); });  // the largest sums
  bits.generate([&] { return kind == 3 ? 0 : kind == 0 ? random.next() : ~uint64_t{0}; });
  Array<uint8_t> expanded_bits(block_count * bits_bytes), expanded_rows(row_count * sign_row_bytes(depth));
  expanded_bits.fill(0xee);
  expanded_rows.fill(0xee);
  Array<int32_t> out((row_count - 1) * out_stride + (block_count - 1) * block_stride + kColumnBlock, 1);
  out.generate([&] { return random.between(-1000000, 1000000); });
  Array<int32_t> wanted = out;
  for (size_t b = 0; b < block_count; ++b) {
    for (size_t r = 0; r < row_count; ++r) {
      for (size_t k = 0; k < kColumnBlock; ++k) {
        int32_t& target = wanted[r * out_stride + b * block_stride + k];
        if (!adds) target = 0;
        for (size_t j = 0; j < size; ++j) target += (bits[b * size + j] >> k & 1) != 0 ? g[r * g_stride + j] : 0;
      }
    }
    kernels.sign_expand_bits(bits.data() + b * size, depth, expanded_bits.data() + b * bits_bytes);
  }
  kernels.sign_expand_rows(g.data(), g_stride, rows, depth, expanded_rows.data());
  kernels.sign_accumulate(expanded_rows.data(), rows, depth, expanded_bits.data(), blocks, out.data(), out_stride,
                          block_stride, adds);
  expanded_bits.check_guards(__FILE__, __LINE__);
  expanded_rows.check_guards(__FILE__, __LINE__);
  CHECK_SAME(out, wanted, text(rows, " rows of ", depth, ", ", blocks, " blocks, kind ", kind));
}

}  // namespace

KERNEL_TEST(sign_gemm) {
  Random random(1);
  for (int depth : {1, 2, 3, 4, 5, 6, 9, 10, 63, 100, 199, 239, 240}) {
    for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13}) {
      for (int blocks : {1, 2, 3}) {
        for (int kind : {0, 1, 2, 3}) {
          for (bool adds : {false, true}) check_product(kernels, depth, rows, blocks, kind, adds, random);
        }
      }
    }
  }
}

}  // namespace bitfleet::test
