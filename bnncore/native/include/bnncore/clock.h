// The clock that this core runs at right now, which no operating system tells reliably: virtual machines hide it, and
// it changes with the load.
#pragma once

namespace bitfleet {

// Cycles a second, from a chain of dependent additions: one a cycle on every core that the engine has kernels for.
// Takes about 5 ms. The fastest of several stretches counts, so that an interruption does not.
double measure_clock_hz();

}  // namespace bitfleet
