// Bits to bytes, shared by the AVX2 kernels that multiply signs by bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bitfleet::avx2 {

// Byte k of the result has only bit k % 8, and has it iff bit k of `bits` is set.
__attribute__((target("avx2"))) inline __m256i bits_to_bytes(uint32_t bits) {
  const __m256i spread =
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i select = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  return _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(bits)), spread), select);
}

}  // namespace bitfleet::avx2
