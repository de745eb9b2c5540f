#include "bnncore/clock.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace bitfleet {

namespace {

// The empty assembly makes the compiler take every sum as it is: it can neither fold nor reorder them.
#define BITFLEET_ADD \
  sum += step;       \
  asm volatile("" : "+r"(sum));
#define BITFLEET_ADD_8 \
  BITFLEET_ADD BITFLEET_ADD BITFLEET_ADD BITFLEET_ADD BITFLEET_ADD BITFLEET_ADD BITFLEET_ADD BITFLEET_ADD

constexpr int kAddsARound = 64;  // the loop's own counting runs beside them

void add_in_a_chain(int rounds, uint64_t step) {
  uint64_t sum = step;
  for (int i = 0; i < rounds; ++i) {
    BITFLEET_ADD_8 BITFLEET_ADD_8 BITFLEET_ADD_8 BITFLEET_ADD_8 BITFLEET_ADD_8 BITFLEET_ADD_8
        BITFLEET_ADD_8 BITFLEET_ADD_8
  }
}

}  // namespace

double measure_clock_hz() {
  using Clock = std::chrono::steady_clock;
  constexpr int kStretches = 16, kRounds = 16384;  // about 0.3 ms each at 3 GHz
  double best = 0;
  for (int i = 0; i < kStretches; ++i) {
    const Clock::time_point start = Clock::now();
    add_in_a_chain(kRounds, static_cast<uint64_t>(i) | 1u);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, kRounds * double{kAddsARound} / seconds);
  }
  return best;
}

}  // namespace bitfleet
