#include "bnncore/packing.h"
#include "gather_inl.h"

namespace bitfleet::portable {

namespace {

template <typename T>
void pack(const T* values, int count, uint64_t* words) {
  for (int w = 0; w < words_for(count); ++w) words[w] = 0;
  for (int i = 0; i < count; ++i) {
    words[i / kWordBits] |= uint64_t{values[i] < T{0}} << (i % kWordBits);
  }
}

void split_pixels(const uint64_t* source, size_t step, size_t words, int count, uint64_t* target, size_t plane_stride) {
  for (size_t w = 0; w < words; ++w) {
    for (int i = 0; i < count; ++i) target[w * plane_stride + i] = source[i * step + w];
  }
}

}  // namespace

void pack_int8(const int8_t* values, int count, uint64_t* words) { pack(values, count, words); }

void pack_float(const float* values, int count, uint64_t* words) { pack(values, count, words); }

void transpose_bytes(const int8_t* source, size_t source_stride, int rows, int columns, int8_t* target,
                     size_t target_stride) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) target[c * target_stride + r] = source[r * source_stride + c];
  }
}

void transpose_words(const uint64_t* source, size_t source_stride, int rows, int columns, uint64_t* target,
                     size_t target_stride) {
  for (int c = 0; c < columns; ++c) {
    for (int r = 0; r < rows; ++r) target[c * target_stride + r] = source[r * source_stride + c];
  }
}

void gather_planes(const uint64_t* map, size_t words, const PixelWindow& window, uint64_t* planes,
                   size_t plane_stride) {
  loops::gather_planes<split_pixels>(map, words, window, planes, plane_stride);
}

}  // namespace bitfleet::portable
