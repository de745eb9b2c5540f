// What every element goes through, by hand, the end of a run under a mask: the compiler takes the elements that are
// left over one by one, and dense layers have runs as short as a batch. The portable loops at 256 bits do the rest.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>

#include "../rounding_avx512.h"
#include "loops_inl.h"

namespace bitfleet::avx512 {

namespace {

constexpr int kShorts = 32;  // int16 lanes
constexpr int kBytes = 64;   // int8 lanes

// Products, or bytes, as int32; 0 outside the mask.
BITFLEET_AVX512 inline __m512i load(__mmask16 lanes, const int16_t* y) {
  return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(lanes, y));
}
BITFLEET_AVX512 inline __m512i load(__mmask16 lanes, const int32_t* y) { return _mm512_maskz_loadu_epi32(lanes, y); }
BITFLEET_AVX512 inline __m512i load(__mmask16 lanes, const int8_t* q) {
  return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, q));
}

BITFLEET_AVX512 inline int bits_in(uint32_t mask) { return std::popcount(mask); }

template <typename Part>
BITFLEET_AVX512 inline void for_lanes(int count, const Part& part) {
  int k = 0;
  for (; k + kLanes <= count; k += kLanes) part(k, __mmask16{0xffff});
  if (k < count) part(k, lanes_inside(k, count));
}

template <typename Part>
BITFLEET_AVX512 inline void for_shorts(int count, const Part& part) {
  int k = 0;
  for (; k + kShorts <= count; k += kShorts) part(k, ~__mmask32{0});
  if (k < count) part(k, (__mmask32{1} << (count - k)) - 1);
}

template <typename Y>
ChannelStatistics statistics(const Y* y, int count);

template <>
BITFLEET_AVX512 ChannelStatistics statistics(const int16_t* y, int count) {
  const __m512i one = _mm512_set1_epi16(1);
  int64_t sum = 0;
  for (int start = 0; start < count; start += loops::kSumBlock<int16_t>) {
    __m512i part = _mm512_setzero_si512();
    for_shorts(std::min(loops::kSumBlock<int16_t>, count - start), [&](int k, __mmask32 lanes) BITFLEET_AVX512 {
      part = _mm512_dpwssd_epi32(part, _mm512_maskz_loadu_epi16(lanes, y + start + k), one);
    });
    sum += _mm512_reduce_add_epi32(part);
  }
  const __m512i floor_mean = _mm512_set1_epi16(static_cast<int16_t>(floor_divide(sum, count)));
  int64_t sum_above = 0, above = 0;
  for (int start = 0; start < count; start += loops::kSumBlock<int16_t>) {
    __m512i part = _mm512_setzero_si512();
    for_shorts(std::min(loops::kSumBlock<int16_t>, count - start), [&](int k, __mmask32 lanes) BITFLEET_AVX512 {
      const __m512i value = _mm512_maskz_loadu_epi16(lanes, y + start + k);
      const __mmask32 over = _mm512_mask_cmpgt_epi16_mask(lanes, value, floor_mean);
      part = _mm512_dpwssd_epi32(part, _mm512_maskz_mov_epi16(over, value), one);
      above += bits_in(over);
    });
    sum_above += _mm512_reduce_add_epi32(part);
  }
  return {sum, 2 * (int64_t{count} * sum_above - above * sum)};  // see loops::statistics
}

// The sum of int32 lanes, in 64 bits.
BITFLEET_AVX512 inline __m512i widened(__m512i values) {
  return _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(values)),
                          _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(values, 1)));
}

template <>
BITFLEET_AVX512 ChannelStatistics statistics(const int32_t* y, int count) {
  __m512i sums = _mm512_setzero_si512();
  for_lanes(count, [&](int k, __mmask16 lanes)
                       BITFLEET_AVX512 { sums = _mm512_add_epi64(sums, widened(load(lanes, y + k))); });
  const int64_t sum = _mm512_reduce_add_epi64(sums);
  const __m512i floor_mean = _mm512_set1_epi32(static_cast<int32_t>(floor_divide(sum, count)));
  __m512i sums_above = _mm512_setzero_si512();
  int64_t above = 0;
  for_lanes(count, [&](int k, __mmask16 lanes) BITFLEET_AVX512 {
    const __m512i value = load(lanes, y + k);
    const __mmask16 over = _mm512_mask_cmpgt_epi32_mask(lanes, value, floor_mean);
    sums_above = _mm512_add_epi64(sums_above, widened(_mm512_maskz_mov_epi32(over, value)));
    above += bits_in(over);
  });
  return {sum, 2 * (int64_t{count} * _mm512_reduce_add_epi64(sums_above) - above * sum)};  // see loops::statistics
}

template <typename Y>
BITFLEET_AVX512_LOOPS void emit_signs(const Y* y, size_t y_stride, const int32_t* sign_from, int rows, int count,
                                      uint16_t* bits) {
  loops::emit_signs(y, y_stride, sign_from, rows, count, bits);
}

template <>
BITFLEET_AVX512 void emit_signs(const int16_t* y, size_t y_stride, const int32_t* sign_from, int rows, int count,
                                uint16_t* bits) {
  int16_t from[16];
  for (int r = 0; r < rows; ++r) from[r] = static_cast<int16_t>(std::clamp(sign_from[r], INT16_MIN + 1, INT16_MAX));
  for_shorts(count, [&](int k, __mmask32 lanes) BITFLEET_AVX512 {
    __m512i all = _mm512_setzero_si512();
    for (int r = 0; r < rows; ++r) {
      const __m512i value = _mm512_maskz_loadu_epi16(lanes, y + r * y_stride + k);
      const __mmask32 negative = _mm512_cmplt_epi16_mask(value, _mm512_set1_epi16(from[r]));
      all = _mm512_mask_add_epi16(all, negative, all, _mm512_set1_epi16(static_cast<int16_t>(1u << r)));
    }
    _mm512_mask_storeu_epi16(bits + k, lanes, all);
  });
}

// Where |x| <= 1.
struct Mask {
  __m512i from, to;

  BITFLEET_AVX512 explicit Mask(const ChannelThresholds& t)
      : from(_mm512_set1_epi32(t.mask_from)), to(_mm512_set1_epi32(t.mask_to)) {}
  BITFLEET_AVX512 __m512i apply(__m512i y, __m512i q) const {
    return _mm512_maskz_mov_epi32(_mm512_mask_cmple_epi32_mask(_mm512_cmpge_epi32_mask(y, from), y, to), q);
  }
};

template <typename Y>
BITFLEET_AVX512 GradientSums gradient_sums(const Y* y, const int8_t* q, int count, int64_t y_bound,
                                           const ChannelThresholds& t, int32_t floor_mean, bool mean_is_integer) {
  const int64_t fits = INT32_MAX / (127 * std::max<int64_t>(y_bound, 1));
  const int block = static_cast<int>(std::clamp<int64_t>(fits, 1, 1 << 15));
  const Mask mask(t);
  const __m512i mean = _mm512_set1_epi32(floor_mean);
  GradientSums sums{};
  for (int start = 0; start < count; start += block) {
    __m512i sum_q = _mm512_setzero_si512(), sum_qy = _mm512_setzero_si512();
    for_lanes(std::min(block, count - start), [&](int k, __mmask16 lanes) BITFLEET_AVX512 {
      const __m512i value = load(lanes, y + start + k);
      const __m512i masked = mask.apply(value, load(lanes, q + start + k));
      sum_q = _mm512_add_epi32(sum_q, masked);
      sum_qy = _mm512_add_epi32(sum_qy, _mm512_mullo_epi32(masked, value));
      sums.above += bits_in(_mm512_mask_cmpgt_epi32_mask(lanes, value, mean));
      sums.at_mean += bits_in(_mm512_mask_cmpeq_epi32_mask(lanes, value, mean));
    });
    sums.q += _mm512_reduce_add_epi32(sum_q);
    sums.qy += _mm512_reduce_add_epi32(sum_qy);
  }
  if (!mean_is_integer) sums.at_mean = 0;
  return sums;
}

// In units of 1 / 65536. A gain is not: what is large there already would overflow.
BITFLEET_AVX512 inline __m512 in_units(__m512 values) { return _mm512_mul_ps(values, _mm512_set1_ps(65536.0f)); }

// Rounds values in units of 1 / 65536, and notes what was rounded.
struct Rounding {
  __m512 largest;
  int32_t saturated = 0;

  BITFLEET_AVX512 Rounding() : largest(_mm512_setzero_ps()) {}

  BITFLEET_AVX512 void store(int8_t* q, __mmask16 lanes, __m512 scaled, __m512i random16) {
    const __m512 kept = clamped(scaled);
    largest = _mm512_mask_range_ps(largest, lanes, largest, scaled, 0b1011);  // the larger magnitude, without its sign
    saturated += bits_in(_mm512_mask_cmp_ps_mask(lanes, kept, scaled, _CMP_NEQ_UQ));
    const __m128i bytes = round_clamped(kept, random16);
    if (lanes == 0xffff) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q), bytes);
    } else {
      _mm_mask_storeu_epi8(q, lanes, bytes);
    }
  }

  BITFLEET_AVX512 QuantiseResult result() const { return {saturated, _mm512_reduce_max_ps(largest) / 65536.0f}; }
};

template <typename Y>
BITFLEET_AVX512_LOOPS float gradient_max(const Y* y, const int8_t* q, int count, const GradientCoefficients& c) {
  return loops::gradient_max(y, q, count, c);
}

template <typename Y>
BITFLEET_AVX512 QuantiseResult gradient_quantise(const Y* y, int8_t* q, int count, const GradientCoefficients& c,
                                                 float gain, RandomStream stream, uint32_t first_index) {
  const Mask mask(c.thresholds);
  const __m512i mean = _mm512_set1_epi32(c.floor_mean);
  const __m512 below = _mm512_set1_ps(c.offset_below), at = _mm512_set1_ps(c.offset_at);
  const __m512 above = _mm512_set1_ps(c.offset_above), gains = _mm512_set1_ps(gain);
  Rounding rounding;
  for_halves(RandomLanes(stream), first_index, count, [&](int k, __mmask16 lanes, __m512i random16) BITFLEET_AVX512 {
    const __m512i value = load(lanes, y + k);
    const __m512 masked = _mm512_cvtepi32_ps(mask.apply(value, load(lanes, q + k)));
    __m512 offset = _mm512_mask_mov_ps(below, _mm512_cmpgt_epi32_mask(value, mean), above);
    offset = _mm512_mask_mov_ps(offset, _mm512_cmpeq_epi32_mask(value, mean), at);
    rounding.store(q + k, lanes, in_units(_mm512_mul_ps(_mm512_sub_ps(masked, offset), gains)), random16);
  });
  return rounding.result();
}

BITFLEET_AVX512 QuantiseResult integer_quantise(const int32_t* sums, int32_t whole, int8_t* q, int count, float gain,
                                                RandomStream stream, uint32_t first_index) {
  const __m512i wholes = _mm512_set1_epi32(whole);
  const __m512 gains = _mm512_set1_ps(gain);
  Rounding rounding;
  for_halves(RandomLanes(stream), first_index, count, [&](int k, __mmask16 lanes, __m512i random16) BITFLEET_AVX512 {
    const __m512i value = _mm512_sub_epi32(wholes, _mm512_slli_epi32(load(lanes, sums + k), 1));
    rounding.store(q + k, lanes, in_units(_mm512_mul_ps(_mm512_cvtepi32_ps(value), gains)), random16);
  });
  return rounding.result();
}

BITFLEET_AVX512 void moments(const ChannelStatistics* statistics, int count, int rows, ChannelNorms& norms) {
  loops::moments(statistics, count, rows, norms);
}

BITFLEET_AVX512 void thresholds(const float* beta, int rows, ChannelNorms& norms) {
  loops::thresholds(beta, rows, norms);
}

BITFLEET_AVX512_LOOPS int32_t integer_max(const int32_t* sums, int32_t whole, int count) {
  return loops::integer_max(sums, whole, count);
}

BITFLEET_AVX512 void byte_sums(const int8_t* values, size_t stride, int rows, int count, int32_t* sums) {
  const __m512i one = _mm512_set1_epi8(1);
  for (int r = 0; r < rows; ++r, values += stride) {
    __m512i sum = _mm512_setzero_si512();
    int k = 0;
    for (; k + kBytes <= count; k += kBytes) sum = _mm512_dpbusd_epi32(sum, one, _mm512_loadu_si512(values + k));
    const __mmask64 left = (__mmask64{1} << (count - k)) - 1;
    sum = _mm512_dpbusd_epi32(sum, one, _mm512_maskz_loadu_epi8(left, values + k));
    sums[r] = _mm512_reduce_add_epi32(sum);
  }
}

BITFLEET_AVX512_LOOPS int64_t integer_abs_sum(const int32_t* sums, int32_t factor, int32_t offset, int count) {
  return loops::integer_abs_sum(sums, factor, offset, count);
}

template <typename Y>
constexpr ProductKernels<Y> kProductKernels = {statistics<Y>, emit_signs<Y>, gradient_sums<Y>, gradient_max<Y>,
                                               gradient_quantise<Y>};

}  // namespace

const ChannelKernels channel_kernels = {
    kProductKernels<int16_t>, kProductKernels<int32_t>, moments, thresholds, integer_quantise, integer_max, byte_sums,
    integer_abs_sum};

}  // namespace bitfleet::avx512
#endif
