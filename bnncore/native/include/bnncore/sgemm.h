// float32 matrix product C = A B, block by block, from packed panels.
//
// Whoever multiplies fills the panels himself, so a convolution's patches, signs or float16 numbers are read where they
// lie and never exist as a matrix. Every element of C is the sum, over blocks of kPanelDepth, of a chain of fused
// multiply-adds in order of k: the same bits on every instruction set, whatever the blocks of rows and columns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace bitfleet {

inline constexpr int kPanelRows = 6;      // rows of A side by side
inline constexpr int kPanelColumns = 16;  // columns of B side by side
inline constexpr int kPanelDepth = 256;   // k of one panel
inline constexpr int kBlockRows = 384;    // most rows of one product
inline constexpr int kBlockColumns = 256;

// tile[6][16] = sum over k < depth of a[k][6] x b[k][16], each a chain of fused multiply-adds from 0.
using SgemmTile = void (*)(const float* a, const float* b, int depth, float* tile);

namespace portable {
void sgemm_tile(const float* a, const float* b, int depth, float* tile);
}
namespace avx2 {
void sgemm_tile(const float* a, const float* b, int depth, float* tile);
}

// Floats of a panel for `count` rows (of kPanelRows) or columns (of kPanelColumns).
constexpr size_t panel_size(int count, int width) {
  return static_cast<size_t>((count + width - 1) / width * width) * kPanelDepth;
}

// Fills a panel from runs along k: run(i, first, count, out) gives elements first .. first + count of row i.
template <int kWidth, typename Run>
void pack_rows_of(int rows, int first, int depth, float* panel, Run run) {
  float line[kPanelDepth];
  for (int i0 = 0; i0 < rows; i0 += kWidth) {
    float* target = panel + static_cast<size_t>(i0) * depth;
    for (int i = 0; i < kWidth; ++i) {
      if (i0 + i < rows) {
        run(i0 + i, first, depth, line);
      } else {
        std::memset(line, 0, sizeof(float) * static_cast<size_t>(depth));
      }
      for (int k = 0; k < depth; ++k) target[k * kWidth + i] = line[k];
    }
  }
}

// Fills a panel from runs across k: run(k, first, count, out) gives rows first .. first + count of element k.
template <int kWidth, typename Run>
void pack_columns_of(int rows, int first, int depth, float* panel, Run run) {
  float line[kBlockRows > kBlockColumns ? kBlockRows : kBlockColumns];
  for (int k = 0; k < depth; ++k) {
    run(first + k, 0, rows, line);
    for (int i0 = 0; i0 < rows; i0 += kWidth) {
      float* target = panel + static_cast<size_t>(i0) * depth + static_cast<size_t>(k) * kWidth;
      const int some = std::min(kWidth, rows - i0);
      for (int i = 0; i < some; ++i) target[i] = line[i0 + i];
      for (int i = some; i < kWidth; ++i) target[i] = 0.0f;
    }
  }
}

// c [rows][kBlockColumns] = A B with rows <= kBlockRows and columns <= kBlockColumns. pack_a(first, depth, panel) and
// pack_b fill the panels for k in [first, first + depth).
template <typename PackA, typename PackB>
void sgemm_block(SgemmTile multiply, int rows, int columns, int depth, float* a, float* b, float* c, PackA pack_a,
                 PackB pack_b) {
  for (int first = 0; first < depth; first += kPanelDepth) {
    const int some = std::min(kPanelDepth, depth - first);
    pack_a(first, some, a);
    pack_b(first, some, b);
    for (int j = 0; j < columns; j += kPanelColumns) {
      for (int i = 0; i < rows; i += kPanelRows) {
        float tile[kPanelRows * kPanelColumns];
        multiply(a + static_cast<size_t>(i) * some, b + static_cast<size_t>(j) * some, some, tile);
        for (int r = 0; r < std::min(kPanelRows, rows - i); ++r) {
          float* target = c + static_cast<size_t>(i + r) * kBlockColumns + j;
          for (int k = 0; k < kPanelColumns; ++k) {
            target[k] = first == 0 ? tile[r * kPanelColumns + k] : target[k] + tile[r * kPanelColumns + k];
          }
        }
      }
    }
  }
}

}  // namespace bitfleet
