// The loops behind PoolKernels, written once and compiled once per instruction set, as those of channel/ are.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "bnncore/pool.h"

#define BITFLEET_INLINE static inline __attribute__((always_inline))

namespace bitfleet::loops {

// Windows of 2 x 2, two neighbours of a row at once.
BITFLEET_INLINE void max_pool_row(const int16_t* __restrict top, const int16_t* __restrict bottom, int count,
                                  int16_t* __restrict pooled, uint8_t* __restrict choices) {
  for (int q = 0; q < count; ++q) {
    uint32_t above, below;
    __builtin_memcpy(&above, top + 2 * q, sizeof(above));
    __builtin_memcpy(&below, bottom + 2 * q, sizeof(below));
    const int32_t a = static_cast<int32_t>(above << 16) >> 16, b = static_cast<int32_t>(above) >> 16;
    const int32_t c = static_cast<int32_t>(below << 16) >> 16, d = static_cast<int32_t>(below) >> 16;
    const int32_t upper = std::max(a, b), lower = std::max(c, d);
    pooled[q] = static_cast<int16_t>(std::max(upper, lower));
    const int32_t in_upper = b > a ? 1 : 0, in_lower = d > c ? 3 : 2;
    if (choices != nullptr) choices[q] = static_cast<uint8_t>(lower > upper ? in_lower : in_upper);
  }
}

// The largest of each window of a map, and the first element of the window that is it.
BITFLEET_INLINE void max_pool(const int16_t* __restrict y, const PoolShape s, int16_t* __restrict pooled,
                              uint8_t* __restrict choices) {
  if (s.window_height == 2 && s.window_width == 2) {
    for (int row = 0; row < s.pooled_height; ++row, pooled += s.pooled_width, y += 2 * s.width) {
      if (choices == nullptr) {
        max_pool_row(y, y + s.width, s.pooled_width, pooled, nullptr);
      } else {
        max_pool_row(y, y + s.width, s.pooled_width, pooled, choices + row * s.pooled_width);
      }
    }
    return;
  }
  for (int row = 0; row < s.pooled_height; ++row, pooled += s.pooled_width) {
    const int16_t* __restrict corner = y + size_t(row) * s.window_height * s.width;
    for (int q = 0; q < s.pooled_width; ++q) pooled[q] = corner[q * s.window_width];
    if (choices != nullptr) {
      for (int q = 0; q < s.pooled_width; ++q) choices[q] = 0;
    }
    for (int i = 1; i < s.window_height * s.window_width; ++i) {
      const int16_t* __restrict element = corner + i / s.window_width * s.width + i % s.window_width;
      if (choices != nullptr) {
        const uint8_t number = static_cast<uint8_t>(i);
        for (int q = 0; q < s.pooled_width; ++q) {
          choices[q] = element[q * s.window_width] > pooled[q] ? number : choices[q];
        }
      }
      for (int q = 0; q < s.pooled_width; ++q) pooled[q] = std::max(pooled[q], element[q * s.window_width]);
    }
    if (choices != nullptr) choices += s.pooled_width;
  }
}

// No int16 product reaches the ends of its range, so a threshold beyond them may be moved there.
template <typename Y>
BITFLEET_INLINE Y threshold_of(int32_t sign_from) {
  using Limits = std::numeric_limits<Y>;
  return static_cast<Y>(std::clamp<int32_t>(sign_from, Limits::min() + (sizeof(Y) == 2), Limits::max()));
}

// What no window covers.
BITFLEET_INLINE void clear_rest(const PoolShape s, int8_t* grad) {
  const int columns = s.pooled_width * s.window_width, lines = s.pooled_height * s.window_height;
  if (columns < s.width) {
    for (int line = 0; line < lines; ++line) {
      for (int i = columns; i < s.width; ++i) grad[line * s.width + i] = 0;
    }
  }
  std::memset(grad + size_t(lines) * s.width, 0, size_t(s.height - lines) * s.width);
}

// The gradients of `count` windows side by side: `grad` is the first one's corner.
template <typename Choice>
BITFLEET_INLINE void spread_windows(const int8_t* __restrict pooled, const Choice* __restrict choices, int count,
                                    const PoolShape s, int8_t* __restrict grad) {
  for (int i = 0; i < s.window_height; ++i, grad += s.width) {
    if (s.window_width == 2) {
      for (int q = 0; q < count; ++q) {
        const uint16_t value = static_cast<uint8_t>(pooled[q]);
        const uint16_t left = choices[q] == 2 * i ? value : uint16_t{0};
        const uint16_t right = choices[q] == 2 * i + 1 ? value : uint16_t{0};
        const uint16_t both = static_cast<uint16_t>(left | right << 8);
        __builtin_memcpy(grad + 2 * q, &both, sizeof(both));
      }
      continue;
    }
    for (int j = 0; j < s.window_width; ++j) {
      const int element = i * s.window_width + j;
      for (int q = 0; q < count; ++q) {
        grad[q * s.window_width + j] = choices[q] == element ? pooled[q] : int8_t{0};
      }
    }
  }
}

BITFLEET_INLINE void spread(const int8_t* pooled, const uint8_t* choices, const PoolShape s, int8_t* grad) {
  for (int row = 0; row < s.pooled_height; ++row) {
    spread_windows(pooled + row * s.pooled_width, choices + row * s.pooled_width, s.pooled_width, s,
                   grad + size_t(row) * s.window_height * s.width);
  }
  clear_rest(s, grad);
}

// The first element of each window that is at least `from`, or 0.
template <typename Y>
BITFLEET_INLINE void choose_positive(const Y* __restrict corner, Y from, int count, const PoolShape s,
                                     int32_t* __restrict choices) {
  for (int q = 0; q < count; ++q) choices[q] = 0;
  for (int i = s.window_height * s.window_width; i-- > 0;) {
    const Y* __restrict element = corner + i / s.window_width * s.width + i % s.window_width;
    for (int q = 0; q < count; ++q) choices[q] = element[q * s.window_width] >= from ? i : choices[q];
  }
}

template <typename Y>
BITFLEET_INLINE void spread_signs(const Y* y, int32_t sign_from, const int8_t* pooled, const PoolShape s,
                                  int8_t* grad) {
  constexpr int kAtOnce = 64;
  const Y from = threshold_of<Y>(sign_from);
  for (int row = 0; row < s.pooled_height; ++row, pooled += s.pooled_width) {
    const size_t corner = size_t(row) * s.window_height * s.width;
    for (int q = 0; q < s.pooled_width; q += kAtOnce) {
      const int some = std::min(kAtOnce, s.pooled_width - q);
      int32_t choices[kAtOnce];
      choose_positive(y + corner + q * s.window_width, from, some, s, choices);
      spread_windows(pooled + q, choices, some, s, grad + corner + q * s.window_width);
    }
  }
  clear_rest(s, grad);
}

}  // namespace bitfleet::loops

// Defines the kernels of one instruction set in namespace `isa`; `target` is its function attribute (may be empty).
#define BITFLEET_DEFINE_POOL_KERNELS(isa, target)                                                                  \
  namespace bitfleet::isa {                                                                                        \
  namespace {                                                                                                      \
  target void max_pool(const int16_t* y, const PoolShape& shape, int16_t* pooled, uint8_t* choices) {              \
    loops::max_pool(y, shape, pooled, choices);                                                                    \
  }                                                                                                                \
  target void spread(const int8_t* pooled, const uint8_t* choices, const PoolShape& shape, int8_t* grad) {         \
    loops::spread(pooled, choices, shape, grad);                                                                   \
  }                                                                                                                \
  template <typename Y>                                                                                            \
  target void spread_signs(const Y* y, int32_t from, const int8_t* pooled, const PoolShape& shape, int8_t* grad) { \
    loops::spread_signs(y, from, pooled, shape, grad);                                                             \
  }                                                                                                                \
  }                                                                                                                \
  const PoolKernels pool_kernels = {max_pool, spread, spread_signs<int16_t>, spread_signs<int32_t>};               \
  }
