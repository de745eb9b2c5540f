// The portable loops at 256 bits: eight int32 or float lanes instead of four.
#if defined(__x86_64__)
#include "loops_inl.h"

BITFLEET_DEFINE_CHANNEL_KERNELS(avx2, __attribute__((target("avx2"))))
#endif
