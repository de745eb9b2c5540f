// Whole tensors, and which of their elements are told.
#include <algorithm>
#include <vector>

#include "bnncore/signs.h"

namespace bitfleet {

namespace {

// Calls visit(row, first, some, sizes of a block) for a tensor's blocks in order.
template <typename Visit>
void each_block(const SignKernels& kernels, const SignSource& source, int rows, int count, const Visit& visit) {
  uint16_t sizes[kSignBlock];
  for (int r = 0; r < rows; ++r) {
    const SignSource row = source.from(static_cast<size_t>(r) * static_cast<size_t>(count));
    for (int first = 0; first < count; first += kSignBlock) {
      const int some = std::min(kSignBlock, count - first);
      kernels.sizes(row.from(static_cast<size_t>(first)), some, sizes);
      visit(r, first, some, sizes);
    }
  }
}

// The elements whose size is more than `above` are told, and the first `equals` of those whose size is just that.
struct Threshold {
  uint32_t above;
  size_t equals;
};

Threshold find_threshold(const SignKernels& kernels, const SignSource& source, int rows, int count, size_t sent) {
  std::vector<size_t> numbers(size_t{1} << 16, 0);
  each_block(kernels, source, rows, count, [&](int, int, int some, const uint16_t* sizes) {
    for (int k = 0; k < some; ++k) ++numbers[sizes[k]];
  });
  size_t above = 0;
  for (uint32_t size = 65535; size > 0; --size) {
    if (above + numbers[size] >= sent) return {size, sent - above};
    above += numbers[size];
  }
  return {0, 0};
}

void mark(const SignKernels& kernels, const SignSource& source, int rows, int count, size_t sent, uint8_t* mask) {
  Threshold threshold = find_threshold(kernels, source, rows, count, sent);
  const size_t bytes = row_bytes(count);
  std::fill(mask, mask + static_cast<size_t>(rows) * bytes, uint8_t{0});
  each_block(kernels, source, rows, count, [&](int r, int first, int some, const uint16_t* sizes) {
    uint8_t* row = mask + static_cast<size_t>(r) * bytes + first / 8;
    for (int k = 0; k < some; ++k) {
      if (sizes[k] < threshold.above || sizes[k] == 0) continue;
      if (sizes[k] == threshold.above) {
        if (threshold.equals == 0) continue;
        --threshold.equals;
      }
      row[k / 8] |= static_cast<uint8_t>(1u << k % 8);
    }
  });
}

}  // namespace

void encode_tensor(const SignKernels& kernels, const SignSource& source, int rows, int count, size_t sent,
                   uint16_t* scales, uint8_t* bits, uint8_t* mask, int8_t* remaining) {
  if (mask != nullptr) mark(kernels, source, rows, count, sent, mask);
  const size_t bytes = row_bytes(count), size = static_cast<size_t>(count);
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    scales[r] = kernels.encode_row(source.from(r * size), mask == nullptr ? nullptr : mask + r * bytes, count,
                                   bits + r * bytes, remaining == nullptr ? nullptr : remaining + r * size);
  }
}

}  // namespace bitfleet
