// The loops behind SignKernels, written once and compiled once per instruction set (see channel/loops_inl.h): blocks of
// elements as 16- or 32-bit integers and as bytes of 0 and 1, which the compiler vectorises, and eight such bytes to a
// byte of bits by one multiplication.
#pragma once

#include <algorithm>
#include <cstring>

#include "bnncore/packing.h"
#include "bnncore/signs.h"

#define BITFLEET_INLINE static inline __attribute__((always_inline))

namespace bitfleet::loops {

inline constexpr int kSteps = 127;
inline constexpr int64_t kLargestScale = 65535;
inline constexpr uint64_t kEachByte = 0x0101010101010101u;

// Bits of `count` flags of 0 or 1; flags beyond count up to a multiple of 8 must be 0.
BITFLEET_INLINE void flags_to_bits(const uint8_t* __restrict flags, int count, uint8_t* __restrict bits) {
  const int bytes = static_cast<int>(row_bytes(count));
  for (int i = 0; i < bytes; ++i) {
    uint64_t eight;
    std::memcpy(&eight, flags + 8 * i, 8);
    bits[i] = static_cast<uint8_t>(eight * 0x0102040810204080u >> 56);  // flag j moves to bit 56 + j
  }
}

// Flags of `count` bits, and of the rest of their last byte.
BITFLEET_INLINE void bits_to_flags(const uint8_t* __restrict bits, int count, uint8_t* __restrict flags) {
  const int bytes = static_cast<int>(row_bytes(count));
  for (int i = 0; i < bytes; ++i) {
    const uint64_t apart = bits[i] * kEachByte & 0x8040201008040201u;
    const uint64_t eight = (apart + 0x7f * kEachByte) >> 7 & kEachByte;
    std::memcpy(flags + 8 * i, &eight, 8);
  }
}

// x of a block, in the units of SignSource.
BITFLEET_INLINE void differences(const SignSource& source, int count, int32_t* __restrict x) {
  const int8_t* __restrict replica = source.replica;
  if (source.master != nullptr) {
    const float* __restrict master = source.master;
    constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, halves to even
    for (int k = 0; k < count; ++k) {
      const float kept = master[k] > -1.0f ? (master[k] < 1.0f ? master[k] : 1.0f) : -1.0f;
      const double real = static_cast<double>(kept) * kSteps - static_cast<double>(replica[k]);
      x[k] = static_cast<int32_t>((real * (1 << kStepBits) + kWhole) - kWhole);
    }
  } else if (source.error != nullptr) {
    const int8_t* __restrict latent = source.latent, * __restrict error = source.error;
    for (int k = 0; k < count; ++k) x[k] = latent[k] - replica[k] + error[k];
  } else {
    const int8_t* __restrict latent = source.latent;
    for (int k = 0; k < count; ++k) x[k] = latent[k] - replica[k];
  }
}

BITFLEET_INLINE int64_t magnitude(const int32_t* __restrict x, const uint8_t* __restrict flags, int count) {
  int64_t total = 0;
  if (flags == nullptr) {
    for (int k = 0; k < count; ++k) total += x[k] < 0 ? -x[k] : x[k];
  } else {
    for (int k = 0; k < count; ++k) total += (x[k] < 0 ? -x[k] : x[k]) & -static_cast<int32_t>(flags[k]);
  }
  return total;
}

// round_half_up(total / count), kept within what a scale can say.
BITFLEET_INLINE uint16_t scale_of(int64_t total, int64_t count) {
  if (count == 0) return 0;
  return static_cast<uint16_t>(std::min((2 * total + count) / (2 * count), kLargestScale));
}

// What remains of x whole steps when `told` fine units of it are told.
BITFLEET_INLINE int8_t remains(int32_t x, int32_t told) {
  const int32_t fine = 256 * x - told;
  const int32_t away = fine < 0 ? -1 : 0;
  const int32_t steps = ((fine < 0 ? -fine : fine) + 128) >> 8;
  const int32_t kept = steps < kSteps ? steps : kSteps;
  return static_cast<int8_t>((kept ^ away) - away);
}

BITFLEET_INLINE uint16_t encode_row(const SignSource& source, const uint8_t* mask, int count, uint8_t* bits,
                                    int8_t* __restrict remaining) {
  int32_t x[kSignBlock];
  uint8_t sent[kSignBlock], negative[kSignBlock];
  int64_t total = 0, number = 0;
  const auto each_block = [&](auto&& visit) __attribute__((always_inline)) {
    for (int first = 0; first < count; first += kSignBlock) {
      const int some = std::min(kSignBlock, count - first);
      differences(source.from(static_cast<size_t>(first)), some, x);
      if (mask != nullptr) bits_to_flags(mask + first / 8, some, sent);
      visit(first, some);
    }
  };
  each_block([&](int, int some) __attribute__((always_inline)) {
    total += magnitude(x, mask == nullptr ? nullptr : sent, some);
    if (mask != nullptr) {
      for (int k = 0; k < some; ++k) number += sent[k];
    }
  });
  if (mask == nullptr) number = count;
  const bool is_master = source.master != nullptr;
  const uint16_t scale = is_master ? scale_of(total, number << (kStepBits - 8)) : scale_of(256 * total, number);
  each_block([&](int first, int some) __attribute__((always_inline)) {
    const int padded = static_cast<int>(8 * row_bytes(some));
    for (int k = 0; k < some; ++k) negative[k] = x[k] < 0;
    for (int k = some; k < padded; ++k) negative[k] = 0;
    if (mask != nullptr) {
      for (int k = 0; k < some; ++k) negative[k] &= sent[k];
    }
    flags_to_bits(negative, some, bits + first / 8);
    if (is_master) return;
    const int32_t s = scale;
    if (mask == nullptr) {
      for (int k = 0; k < some; ++k) remaining[first + k] = remains(x[k], x[k] < 0 ? -s : s);
    } else {
      for (int k = 0; k < some; ++k) {
        const int32_t told = (x[k] < 0 ? -s : s) & -static_cast<int32_t>(sent[k]);
        remaining[first + k] = remains(x[k], told);
      }
    }
  });
  return scale;
}

BITFLEET_INLINE void sizes(const SignSource& source, int count, uint16_t* __restrict found) {
  int32_t x[kSignBlock];
  differences(source, count, x);
  const int shift = source.master == nullptr ? 0 : kStepBits - 8;
  for (int k = 0; k < count; ++k) found[k] = static_cast<uint16_t>((x[k] < 0 ? -x[k] : x[k]) >> shift);
}

BITFLEET_INLINE void apply_row(int8_t* __restrict replica, const uint8_t* bits, const uint8_t* mask, int count,
                               uint16_t scale) {
  uint8_t negative[kSignBlock], present[kSignBlock];
  const int16_t step = static_cast<int16_t>((scale + 128) >> 8);
  for (int first = 0; first < count; first += kSignBlock) {
    const int some = std::min(kSignBlock, count - first);
    bits_to_flags(bits + first / 8, some, negative);
    if (mask == nullptr) {
      std::memset(present, 1, static_cast<size_t>(some));
    } else {
      bits_to_flags(mask + first / 8, some, present);
    }
    int8_t* __restrict moved = replica + first;
    for (int k = 0; k < some; ++k) {
      const int16_t there = static_cast<int16_t>(-present[k]), minus = static_cast<int16_t>(-negative[k]);
      const int16_t change = static_cast<int16_t>(((step & there) ^ minus) - minus);
      const int16_t next = static_cast<int16_t>(moved[k] + change);
      moved[k] = static_cast<int8_t>(next < -kSteps ? -kSteps : next > kSteps ? kSteps : next);
    }
  }
}

BITFLEET_INLINE void expand_row(const uint8_t* bits, const uint8_t* mask, int count, uint16_t scale,
                                int32_t* __restrict values) {
  uint8_t negative[kSignBlock], present[kSignBlock];
  const int32_t s = scale;
  for (int first = 0; first < count; first += kSignBlock) {
    const int some = std::min(kSignBlock, count - first);
    bits_to_flags(bits + first / 8, some, negative);
    if (mask == nullptr) {
      for (int k = 0; k < some; ++k) values[first + k] = negative[k] != 0 ? -s : s;
    } else {
      bits_to_flags(mask + first / 8, some, present);
      for (int k = 0; k < some; ++k) {
        values[first + k] = (negative[k] != 0 ? -s : s) & -static_cast<int32_t>(present[k]);
      }
    }
  }
}

}  // namespace bitfleet::loops

#define BITFLEET_DEFINE_SIGN_KERNELS(isa, target)                                                                 \
  namespace bitfleet::isa {                                                                                       \
  namespace {                                                                                                     \
  target uint16_t encode_row(const SignSource& source, const uint8_t* mask, int count, uint8_t* bits,             \
                             int8_t* remaining) {                                                                 \
    return loops::encode_row(source, mask, count, bits, remaining);                                               \
  }                                                                                                               \
  target void sizes(const SignSource& source, int count, uint16_t* found) { loops::sizes(source, count, found); } \
  target void apply_row(int8_t* replica, const uint8_t* bits, const uint8_t* mask, int count, uint16_t scale) {   \
    loops::apply_row(replica, bits, mask, count, scale);                                                          \
  }                                                                                                               \
  target void expand_row(const uint8_t* bits, const uint8_t* mask, int count, uint16_t scale, int32_t* values) {  \
    loops::expand_row(bits, mask, count, scale, values);                                                          \
  }                                                                                                               \
  }                                                                                                               \
  const SignKernels sign_kernels = {encode_row, sizes, apply_row, expand_row};                                    \
  }
