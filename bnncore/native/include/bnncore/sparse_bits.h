// Bits at the places that a mask marks: brought together without gaps, and back to their places.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitfleet {

// bits, mask: `size` bytes. gathered: as many bits as the mask has, in order, padded with zeros to whole bytes.
void gather_bits(const uint8_t* bits, const uint8_t* mask, size_t size, uint8_t* gathered);

// The reverse; bits that the mask does not mark become 0.
void scatter_bits(const uint8_t* gathered, const uint8_t* mask, size_t size, uint8_t* bits);

}  // namespace bitfleet
