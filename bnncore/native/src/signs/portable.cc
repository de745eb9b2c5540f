#include "loops_inl.h"

BITFLEET_DEFINE_SIGN_KERNELS(portable, )
