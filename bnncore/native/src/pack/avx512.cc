// A panel's runs of eight words are one vector each.
#if defined(__x86_64__)
#include "../avx512.h"

#include "bnncore/packing.h"
#include "gather_inl.h"

namespace bitfleet::avx512 {

BITFLEET_AVX512 void gather_panel(const BlockSpec& spec, const uint64_t* planes, size_t words, int first, int count,
                                  uint64_t* panel, size_t stride) {
  loops::gather_panel(spec, planes, words, first, count, panel, stride);
}

}  // namespace bitfleet::avx512
#endif
