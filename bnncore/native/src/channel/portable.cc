#include "loops_inl.h"

BITFLEET_DEFINE_CHANNEL_KERNELS(portable, )
