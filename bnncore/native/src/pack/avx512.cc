// VPMOVB2M makes a word of 64 signs in one instruction.
#if defined(__x86_64__)
#include "../avx512.h"

#include <immintrin.h>

#include "bnncore/packing.h"

namespace bitfleet::avx512 {

BITFLEET_AVX512 void pack_int8(const int8_t* values, int count, uint64_t* words) {
  for (; count >= kWordBits; count -= kWordBits, values += kWordBits) {
    *words++ = _mm512_movepi8_mask(_mm512_loadu_si512(values));
  }
  if (count > 0) *words = _mm512_movepi8_mask(_mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, values));
}

}  // namespace bitfleet::avx512
#endif
