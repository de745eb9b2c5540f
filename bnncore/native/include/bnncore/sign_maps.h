// Products of maps of signs with binary weights, for callers that have no engine and no arena: a convolution on bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bnncore/dispatch.h"
#include "bnncore/network.h"

namespace bitfleet {

// weights: signs as bytes, +1 and -1, [out channels][taps][in channels]; packed: [out channels][taps * words_for(in
// channels)], what `multiply_sign_maps` reads.
void pack_sign_weights(const Kernels& kernels, const BlockSpec& conv, const int8_t* weights, uint64_t* packed);

// maps: bits [count][map_bytes], each sample's signs in the order [in_height][in_width][in_channels] without a gap, the
// first in the lowest bit; products: [count][conv positions][out channels]. Padding counts as 0. Exact for a fan-in of
// at most kXnorDepth. The pool of `conv` is not looked at. `threads` share the work; each allocates scratch of its own.
void multiply_sign_maps(const Kernels& kernels, const BlockSpec& conv, const uint8_t* maps, size_t map_bytes, int count,
                        const uint64_t* packed, int threads, int16_t* products);

}  // namespace bitfleet
