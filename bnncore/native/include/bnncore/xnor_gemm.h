// Binary x binary product: y[r][p] = sum_i w[r][i] * x[i][p] over signs, as depth - 2 * popcount(x XOR w), less what
// `excess` says, which padding added.
//
// x is read where it lies, neighbouring positions next to each other, so that they fill a vector. The caller promises:
// x is readable up to a multiple of kPanelLanes positions; words of x and rows of w have the same `depth` bits in use,
// the others zero; y does not overlap them. Exact for depth <= kXnorDepth; a depth of 0 gives a part's -2 * popcount,
// exact for up to 255 words. Every instruction set gives the same integers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

inline constexpr int kXnorDepth = 32766;  // |y| stays below the largest int16

// Positions in lines of `width`, which is a multiple of kPanelLanes or else the pitch: word i of position p lies at
// words[offsets[i] + p / width * pitch + p % width].
struct XnorPanel {
  const uint64_t* words;
  const int32_t* offsets;
  int width, pitch;
};

// Word of the first of kPanelLanes positions after another, as the kernels walk over them.
struct PanelPlace {
  size_t word = 0;
  int column = 0;

  void advance(const XnorPanel& x) {
    word += 8;
    column += 8;
    if (column < x.width) return;
    column -= x.width;
    word += static_cast<size_t>(x.pitch - x.width);
  }
};

// w: uint64 [rows][w_stride], of which `words` are read; excess: int16 [rows][excess_stride], or null for zeros;
// y: int16 [rows][y_stride]; of both `count` are in use.
using XnorGemm = void (*)(const XnorPanel& x, int count, const uint64_t* w, size_t w_stride, int rows, int words,
                          int depth, const int16_t* excess, size_t excess_stride, int16_t* y, size_t y_stride);

#define BITFLEET_DECLARE(isa)                                                                                       \
  namespace isa {                                                                                                   \
  void xnor_gemm(const XnorPanel& x, int count, const uint64_t* w, size_t w_stride, int rows, int words, int depth, \
                 const int16_t* excess, size_t excess_stride, int16_t* y, size_t y_stride);                         \
  }
BITFLEET_DECLARE(portable)
BITFLEET_DECLARE(avx2)
BITFLEET_DECLARE(avx512)
BITFLEET_DECLARE(neon)
#undef BITFLEET_DECLARE

}  // namespace bitfleet
