// Both widths of input_gemm from a template `gemm` of the same file; `target` is their function attribute (may be
// empty).
#pragma once

#include "bnncore/input_gemm.h"

#define BITFLEET_DEFINE_INPUT_GEMM_WIDTHS(target)                                                      \
  target void input_gemm_narrow(const uint8_t* u, size_t u_stride, size_t segment_stride, int count,   \
                                const int8_t* expanded, int rows, int segments, int width, int16_t* y, \
                                size_t y_stride) {                                                     \
    gemm(u, u_stride, segment_stride, count, expanded, rows, segments, width, y, y_stride);            \
  }                                                                                                    \
  target void input_gemm_wide(const uint8_t* u, size_t u_stride, size_t segment_stride, int count,     \
                              const int8_t* expanded, int rows, int segments, int width, int32_t* y,   \
                              size_t y_stride) {                                                       \
    gemm(u, u_stride, segment_stride, count, expanded, rows, segments, width, y, y_stride);            \
  }
