// The three products of a block in float32, for any way of storing what is multiplied: operands are gathered and
// widened a few thousand numbers at a time, and results are handed over tile by tile.
//
// `Inputs`: fill(sample pixel, channel, count, out) gives channels of one pixel of the block's input as it is
// multiplied. `Weights`: fill(output, k, count, out) gives signs. `Gradients`: fill(row, channel, count, out).
// `Store`: (first row, rows, first column, columns, tile, tile stride).
#pragma once

#include <algorithm>
#include <cstring>

#include "bnncore/float_kernels.h"
#include "bnncore/network.h"
#include "bnncore/packing.h"
#include "bnncore/thread_pool.h"
#include "patches.h"

namespace bitfleet {

inline constexpr int kProductDepth = PatchRuns::kMost;    // of the operands gathered at once
inline constexpr int kProductRows = 48;                   // of a gathered at once
inline constexpr int kProductColumns = 128;               // of b gathered at once
inline constexpr int kProductTile = 192 * 128;            // most numbers of c added up at once
inline constexpr int kProductStride = kProductDepth + 8;  // of a; no power of two, so that rows share no cache sets

// A thread's own.
struct ProductScratch {
  float* a;       // [kProductRows][kProductStride]
  float* b;       // [columns / 16][depth][16]
  float* tile;    // [kProductTile]
  float* staged;  // [16][kProductStride]: what is transposed next
};

class Product {
 public:
  Product(const FloatKernels& kernels, const ProductScratch& scratch) : kernels_(kernels), s_(scratch) {}

  // y[row][out] for positions `rows` of the batch and channels `columns`.
  template <typename Inputs, typename Weights, typename Store>
  void forward(const BlockSpec& spec, Range rows, Range columns, Inputs inputs, Weights weights, Store store) const {
    multiply(
        rows, columns, spec.fan_in(),
        [&](int row, int count, int k, int depth) {
          const PatchRuns runs(spec, k, depth);
          for (int i = 0; i < count; ++i) gather(runs, row + i, inputs, s_.a + size_t{kProductStride} * i);
        },
        [&](int k, int depth, int column, int count) {
          transpose_into_panels(k, depth, column, count,
                                [&](int output, float* out) { weights(output, k, depth, out); });
        },
        store);
  }

  // grad_weights[out][k] summed over `positions` of the batch.
  template <typename Inputs, typename Gradients, typename Store>
  void weight_gradient(const BlockSpec& spec, Range outputs, Range columns, int positions, Inputs inputs,
                       Gradients gradients, Store store) const {
    multiply(
        outputs, columns, positions,
        [&](int output, int count, int position, int depth) {
          for (int i = 0; i < depth; i += kSgemmColumns) {
            const int some = std::min(kSgemmColumns, depth - i);
            for (int j = 0; j < some; ++j) {
              gradients(position + i + j, output, count, s_.staged + size_t{kProductStride} * j);
            }
            kernels_.transpose(s_.staged, kProductStride, some, count, s_.a + i, kProductStride);
          }
        },
        [&](int position, int depth, int column, int count) {
          const PatchRuns runs(spec, column, count);
          for (int i = 0; i < depth; ++i) {
            gather(runs, position + i, inputs, s_.staged);
            spread_over_panels(i, depth, count);
          }
        },
        store);
  }

  // The gradient of the patches [rows][k], for columns k: what a block passes down before it is added up.
  template <typename Weights, typename Gradients, typename Store>
  void input_gradient(const BlockSpec& spec, Range rows, Range columns, Weights weights, Gradients gradients,
                      Store store) const {
    multiply(
        rows, columns, spec.out_channels,
        [&](int row, int count, int channel, int depth) {
          for (int i = 0; i < count; ++i) gradients(row + i, channel, depth, s_.a + size_t{kProductStride} * i);
        },
        [&](int output, int depth, int column, int count) {
          for (int i = 0; i < depth; ++i) {
            weights(output + i, column, count, s_.staged);
            spread_over_panels(i, depth, count);
          }
        },
        store);
  }

 private:
  template <typename LoadA, typename LoadB, typename Store>
  void multiply(Range rows, Range columns, int depth, LoadA load_a, LoadB load_b, Store store) const {
    if (rows.begin >= rows.end || columns.begin >= columns.end) return;
    const int width = std::min(kProductColumns, static_cast<int>(round_up(columns.end - columns.begin, kSgemmColumns)));
    const int height = kProductTile / width / kProductRows * kProductRows;
    for (int row = rows.begin; row < rows.end; row += height) {
      const int count = std::min(height, rows.end - row);
      for (int column = columns.begin; column < columns.end; column += width) {
        const int some = std::min(width, columns.end - column);
        for (int k = 0; k < depth; k += kProductDepth) {
          const int deep = std::min(kProductDepth, depth - k);
          load_b(k, deep, column, some);
          for (int i = 0; i < count; i += kProductRows) {
            const int few = std::min(kProductRows, count - i);
            load_a(row + i, few, k, deep);
            kernels_.sgemm(s_.a, kProductStride, few, s_.b, deep, some, s_.tile + size_t(i) * width, width, k > 0);
          }
        }
        store(row, count, column, some, s_.tile, width);
      }
    }
  }

  template <typename Inputs>
  static void gather(const PatchRuns& runs, int row, Inputs& inputs, float* out) {
    runs.visit(
        row, [&](size_t pixel, const PatchRuns::Run& run) { inputs(pixel, run.channel, run.count, out + run.target); },
        [&](const PatchRuns::Run& run) { std::memset(out + run.target, 0, sizeof(float) * run.count); });
  }

  // Row `i` of b, from `staged`.
  void spread_over_panels(int i, int depth, int count) const {
    std::fill_n(s_.staged + count, (kSgemmColumns - count % kSgemmColumns) % kSgemmColumns, 0.0f);
    float* target = s_.b + size_t{kSgemmColumns} * i;
    for (int j = 0; j < count; j += kSgemmColumns) {
      std::memcpy(target + size_t(j) * depth, s_.staged + j, sizeof(float) * kSgemmColumns);
    }
  }

  template <typename Fill>
  void transpose_into_panels(int k, int depth, int column, int count, Fill fill) const {
    for (int j = 0; j < count; j += kSgemmColumns) {
      const int some = std::min(kSgemmColumns, count - j);
      for (int i = 0; i < some; ++i) fill(column + j + i, s_.staged + size_t{kProductStride} * i);
      if (some < kSgemmColumns) {
        std::fill_n(s_.staged + size_t{kProductStride} * some, size_t{kProductStride} * (kSgemmColumns - some), 0.0f);
      }
      kernels_.transpose(s_.staged, kProductStride, kSgemmColumns, depth, s_.b + size_t(j) * depth, kSgemmColumns);
    }
  }

  const FloatKernels& kernels_;
  const ProductScratch& s_;
};

}  // namespace bitfleet
