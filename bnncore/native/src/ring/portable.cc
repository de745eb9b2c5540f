// Plain words, which the compiler turns into vectors: with 128-bit ones a mask's key stream takes longer to make than
// to add, so no instruction set has a file of its own.
#include <algorithm>
#include <cstring>

#include "bnncore/ring.h"

namespace bitfleet {

namespace {

constexpr int kWords = kRingPlane / sizeof(uint64_t);

// A ripple-carry adder (subtracter) over planes: carry holds 512 carries (borrows).
template <bool kSubtract>
void combine(uint8_t* sum, const uint8_t* other, int bits, size_t blocks) {
  for (size_t block = 0; block < blocks; ++block) {
    uint64_t carry[kWords] = {};
    for (int j = 0; j < bits; ++j, sum += kRingPlane, other += kRingPlane) {
      uint64_t a[kWords], b[kWords];
      std::memcpy(a, sum, sizeof a);
      std::memcpy(b, other, sizeof b);
      for (int w = 0; w < kWords; ++w) {
        const uint64_t differs = a[w] ^ b[w];
        const uint64_t result = differs ^ carry[w];
        // Where a and b are equal, a + b carries a, and a - b hands on the borrow; where they differ, a + b hands on
        // the carry, and a - b borrows b.
        carry[w] = kSubtract ? (differs & b[w]) | (~differs & carry[w]) : (differs & carry[w]) | (~differs & a[w]);
        a[w] = result;
      }
      std::memcpy(sum, a, sizeof a);
    }
  }
}

// Transposes 64 x 64 bits: bit k of word j becomes bit j of word k. Warren, "Hacker's Delight", 7-3.
void transpose(uint64_t* x) {
  uint64_t mask = 0x00000000ffffffffu;
  for (int half = 32; half != 0; half >>= 1, mask ^= mask << half) {
    for (int k = 0; k < 64; k = (k + half + 1) & ~half) {
      const uint64_t swapped = (x[k] >> half ^ x[k + half]) & mask;
      x[k] ^= swapped << half;
      x[k + half] ^= swapped;
    }
  }
}

}  // namespace

void ring_add(uint8_t* sum, const uint8_t* other, int bits, size_t blocks) { combine<false>(sum, other, bits, blocks); }

void ring_subtract(uint8_t* sum, const uint8_t* other, int bits, size_t blocks) {
  combine<true>(sum, other, bits, blocks);
}

void ring_write(const int64_t* values, size_t count, int bits, uint8_t* planes) {
  const size_t whole = ring_blocks(count) * kRingBlock;
  for (size_t first = 0; first < whole; first += 64) {
    uint64_t words[64] = {};
    if (first < count) std::memcpy(words, values + first, std::min<size_t>(64, count - first) * sizeof(uint64_t));
    transpose(words);
    uint8_t* column = planes + first / kRingBlock * static_cast<size_t>(bits) * kRingPlane + first % kRingBlock / 8;
    for (int j = 0; j < bits; ++j) {
      std::memcpy(column + static_cast<size_t>(j) * kRingPlane, &words[j], sizeof(uint64_t));
    }
  }
}

void ring_read(const uint8_t* planes, size_t count, int bits, int64_t* values) {
  for (size_t first = 0; first < count; first += 64) {
    uint64_t words[64] = {};
    const uint8_t* column =
        planes + first / kRingBlock * static_cast<size_t>(bits) * kRingPlane + first % kRingBlock / 8;
    for (int j = 0; j < bits; ++j) {
      std::memcpy(&words[j], column + static_cast<size_t>(j) * kRingPlane, sizeof(uint64_t));
    }
    transpose(words);
    std::memcpy(values + first, words, std::min<size_t>(64, count - first) * sizeof(uint64_t));
  }
}

}  // namespace bitfleet
