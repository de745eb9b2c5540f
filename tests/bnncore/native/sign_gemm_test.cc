// 8-bit integers times bits, against plain sums.
#include "bnncore/sign_gemm.h"

#include "check.h"

namespace bitfleet::test {

KERNEL_TEST(sign_gemm) {
  Random random(1);
  for (int depth : {1, 2, 3, 4, 5, 6, 8, 9, 10, 63, 64, 100, 127, 199, 236, 239, 240}) {
    for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13}) {
      for (int kind = 0; kind < 4; ++kind) {  // random; the largest sums of either sign; nothing
        const size_t size = static_cast<size_t>(depth), g_stride = size + 3, out_stride = kColumnBlock + 5;
        const size_t row_count = static_cast<size_t>(rows);
        Array<int8_t> g((row_count - 1) * g_stride + size, 1);
        Array<uint64_t> bits(size, 1);
        g.generate([&] { return kind == 1 ? 127 : kind == 2 ? -127 : random.between(-127, 127); });
        bits.generate([&] { return kind == 3 ? 0 : kind == 0 ? random.next() : ~uint64_t{0}; });
        Array<uint8_t> expanded_bits(sign_bits_bytes(depth)), expanded_rows(row_count * sign_row_bytes(depth));
        expanded_bits.fill(0xee);
        expanded_rows.fill(0xee);
        Array<int32_t> out((row_count - 1) * out_stride + kColumnBlock, 1);
        out.generate([&] { return random.between(-1000000, 1000000); });
        Array<int32_t> wanted = out;
        for (size_t r = 0; r < row_count; ++r) {
          for (size_t k = 0; k < kColumnBlock; ++k) {
            for (size_t j = 0; j < size; ++j) {
              wanted[r * out_stride + k] += (bits[j] >> k & 1) != 0 ? g[r * g_stride + j] : 0;
            }
          }
        }
        kernels.sign_expand_bits(bits.data(), depth, expanded_bits.data());
        kernels.sign_expand_rows(g.data(), g_stride, rows, depth, expanded_rows.data());
        kernels.sign_accumulate(expanded_rows.data(), rows, depth, expanded_bits.data(), out.data(), out_stride);
        expanded_bits.check_guards(__FILE__, __LINE__);
        expanded_rows.check_guards(__FILE__, __LINE__);
        CHECK_SAME(out, wanted, text(rows, " rows of ", depth, ", kind ", kind));
      }
    }
  }
}

}  // namespace bitfleet::test
