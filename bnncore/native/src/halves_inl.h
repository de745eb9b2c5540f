// random_half() of many elements, for loops that are compiled once per instruction set.
#pragma once

#include <cstdint>

#include "bnncore/random.h"

namespace bitfleet::loops {

// For loops over `count` elements that draw one each, so many at a time.
inline constexpr int kHalvesAtOnce = 256;
inline constexpr int kHalvesRoom = kHalvesAtOnce + kHalvesBlock;

// The halves of `count` <= kHalvesAtOnce elements from `first` on, inside `room`: whole blocks are drawn.
static inline __attribute__((always_inline)) const uint16_t* random_halves(RandomStream stream, uint32_t first,
                                                                           int count, uint16_t room[kHalvesRoom]) {
  const int skipped = static_cast<int>(first % kHalvesBlock);
  for (int start = 0; start < skipped + count; start += kHalvesBlock) {
    const uint32_t number = (first + static_cast<uint32_t>(start - skipped)) / 2;
    for (int i = 0; i < kHalvesBlock / 2; ++i) {
      const uint32_t word = random_word(stream, number + static_cast<uint32_t>(i));
      room[start + i] = static_cast<uint16_t>(word >> 16);
      room[start + kHalvesBlock / 2 + i] = static_cast<uint16_t>(word);
    }
  }
  return room + skipped;
}

}  // namespace bitfleet::loops
