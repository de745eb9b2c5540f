// The portable loops at 256 bits.
#if defined(__x86_64__)
#include "loops_inl.h"

BITFLEET_DEFINE_FIXED_POINT_KERNELS(avx2, 8, __attribute__((target("avx2"))))
#endif
