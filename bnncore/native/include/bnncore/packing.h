// Signs held as bits, 64 to a word.
//
// Bit 1 means -1, bit 0 means +1; element i is bit i % 64 of word i / 64; unused bits of the last word are zero.
// sign(0) = sign(-0.0) = +1. NaN has no sign: callers refuse it before it gets here.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace bitfleet {

static_assert(std::endian::native == std::endian::little, "packed rows are read as 32-bit halves of 64-bit words");

inline constexpr int kWordBits = 64;

constexpr int words_for(int count) { return (count + kWordBits - 1) / kWordBits; }

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Packs the signs of `count` values into words_for(count) words.
using PackInt8 = void (*)(const int8_t* values, int count, uint64_t* words);
using PackFloat = void (*)(const float* values, int count, uint64_t* words);

// Copies the byte block source[rows][columns] to target[columns][rows]; strides in bytes. No overlap.
using TransposeBytes = void (*)(const int8_t* source, size_t source_stride, int rows, int columns, int8_t* target,
                                size_t target_stride);

// The same for words: source[rows][columns] to target[columns][rows]; strides in words.
using TransposeWords = void (*)(const uint64_t* source, size_t source_stride, int rows, int columns, uint64_t* target,
                                size_t target_stride);

// Pixels of a map [height][width]: rows `row`, row + row_step, ... of it, and columns likewise.
struct PixelWindow {
  int height, width;
  int row, rows, row_step;
  int column, columns, column_step;
};

// Word by word what the pixels of a window hold, 0 outside of the map: planes [words][plane_stride], of which
// [rows][columns] are written. map: [height][width][words].
using GatherPlanes = void (*)(const uint64_t* map, size_t words, const PixelWindow& window, uint64_t* planes,
                              size_t plane_stride);

inline constexpr int kPanelLanes = 8;  // positions that a kernel reads at once

#define BITFLEET_DECLARE_PACKING(isa)                                                                         \
  namespace isa {                                                                                             \
  void pack_int8(const int8_t* values, int count, uint64_t* words);                                           \
  void pack_float(const float* values, int count, uint64_t* words);                                           \
  void transpose_bytes(const int8_t* source, size_t source_stride, int rows, int columns, int8_t* target,     \
                       size_t target_stride);                                                                 \
  void transpose_words(const uint64_t* source, size_t source_stride, int rows, int columns, uint64_t* target, \
                       size_t target_stride);                                                                 \
  void gather_planes(const uint64_t* map, size_t words, const PixelWindow& window, uint64_t* planes,          \
                     size_t plane_stride);                                                                    \
  }
BITFLEET_DECLARE_PACKING(portable)
BITFLEET_DECLARE_PACKING(avx2)
BITFLEET_DECLARE_PACKING(avx512)
BITFLEET_DECLARE_PACKING(neon)
#undef BITFLEET_DECLARE_PACKING

}  // namespace bitfleet
