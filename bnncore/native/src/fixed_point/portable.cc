#include "loops_inl.h"

BITFLEET_DEFINE_FIXED_POINT_KERNELS(portable, 4, )
