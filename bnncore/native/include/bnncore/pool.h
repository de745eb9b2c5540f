// Max pools of one map of products: what they keep, and where the gradient of what they kept belongs.
//
// Windows lie side by side from the top left; what is left over at the right and below is dropped, and its gradient
// is 0. Elements of a window are numbered row by row; of equal ones the first is kept. Integers only: every
// instruction set gives the same.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

struct PoolShape {
  int height, width;  // of the map
  int pooled_height, pooled_width;
  int window_height, window_width;
};

struct PoolKernels {
  // pooled [pooled_height][pooled_width]: the largest y of each window, of at most 256 elements. `choices`, unless it
  // is null, receives the number of the element that is.
  void (*max_pool)(const int16_t* y, const PoolShape& shape, int16_t* pooled, uint8_t* choices);
  // grad [height][width]: each gradient of pooled [pooled_height][pooled_width] at the element of its window that
  // `choices` says.
  void (*spread)(const int8_t* pooled, const uint8_t* choices, const PoolShape& shape, int8_t* grad);
  // The same where signs were pooled: at the first element with y >= sign_from, or at the window's first. Products are
  // of either width.
  void (*spread_signs_narrow)(const int16_t* y, int32_t sign_from, const int8_t* pooled, const PoolShape& shape,
                              int8_t* grad);
  void (*spread_signs_wide)(const int32_t* y, int32_t sign_from, const int8_t* pooled, const PoolShape& shape,
                            int8_t* grad);

  template <typename Y>
  auto spread_signs_of() const {
    if constexpr (sizeof(Y) == sizeof(int16_t)) {
      return spread_signs_narrow;
    } else {
      return spread_signs_wide;
    }
  }
};

namespace portable {
extern const PoolKernels pool_kernels;
}
namespace avx2 {
extern const PoolKernels pool_kernels;
}
namespace avx512 {
extern const PoolKernels pool_kernels;
}

}  // namespace bitfleet
