// The portable loops at 512 bits.
#if defined(__x86_64__)
#include "../avx512.h"

#include "loops_inl.h"

BITFLEET_DEFINE_FIXED_POINT_KERNELS(avx512, 16, BITFLEET_AVX512_LOOPS)
#endif
