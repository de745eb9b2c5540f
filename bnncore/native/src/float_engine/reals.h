// Reading and writing the two kinds of reals, and bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/half.h"
#include "bnncore/packing.h"

namespace bitfleet {

inline float load(float x) { return x; }
inline float load(Half x) { return to_float(x); }
inline void store(float& target, float x) { target = x; }
inline void store(Half& target, float x) { target = to_half(x); }

inline void load_run(const float* source, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = source[i];
}
inline void load_run(const Half* source, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = to_float(source[i]);
}

inline float sign_of(float x) { return x < 0.0f ? -1.0f : 1.0f; }

inline bool get_bit(const uint64_t* words, size_t i) { return (words[i / kWordBits] >> (i % kWordBits) & 1u) != 0; }
inline void set_bit(uint64_t* words, size_t i, bool value) {
  const uint64_t bit = uint64_t{1} << (i % kWordBits);
  words[i / kWordBits] = value ? words[i / kWordBits] | bit : words[i / kWordBits] & ~bit;
}

}  // namespace bitfleet
