// Vectors of whole numbers modulo 2^k, k from 1 to 64, bit-sliced: 512 elements are a block of k planes of 64 bytes.
// Bit j of element i of a block is bit i % 8 of byte i / 8 of plane j. So a number takes k bits and no more, and adding
// is a handful of operations on whole words, with the carries of 512 elements side by side.
//
// Nothing need be aligned. Bits beyond the last element are added like any others.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

inline constexpr size_t kRingBlock = 512;             // elements
inline constexpr size_t kRingPlane = kRingBlock / 8;  // bytes

constexpr size_t ring_blocks(size_t count) { return (count + kRingBlock - 1) / kRingBlock; }

// sum[blocks][bits][kRingPlane] += other, element by element modulo 2^bits. `other` may be `sum`.
void ring_add(uint8_t* sum, const uint8_t* other, int bits, size_t blocks);

// The same with -=.
void ring_subtract(uint8_t* sum, const uint8_t* other, int bits, size_t blocks);

// Writes values[count] modulo 2^bits into ring_blocks(count) blocks; elements beyond the last are 0.
void ring_write(const int64_t* values, size_t count, int bits, uint8_t* planes);

// values[count], each in [0, 2^bits); of 64 bits, its pattern.
void ring_read(const uint8_t* planes, size_t count, int bits, int64_t* values);

}  // namespace bitfleet
