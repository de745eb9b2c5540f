#include "loops_inl.h"

BITFLEET_DEFINE_POOL_KERNELS(portable, )
