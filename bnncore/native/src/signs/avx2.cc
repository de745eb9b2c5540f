// The portable loops at 256 bits.
#if defined(__x86_64__)
#include "loops_inl.h"

BITFLEET_DEFINE_SIGN_KERNELS(avx2, __attribute__((target("avx2"))))
#endif
