// Accumulators in an array stay in registers only where every loop over them is unrolled, which g++ does too late for
// nested ones unless it is told.
#pragma once

#define BITFLEET_UNROLL _Pragma("GCC unroll 16")
