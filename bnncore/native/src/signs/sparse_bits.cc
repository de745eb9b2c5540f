#include "bnncore/sparse_bits.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "bnncore/packing.h"

namespace bitfleet {

namespace {

constexpr size_t kWordBytes = sizeof(uint64_t);

uint64_t load(const uint8_t* bytes, size_t count) {
  uint64_t word = 0;
  std::memcpy(&word, bytes, count);
  return word;
}

}  // namespace

void gather_bits(const uint8_t* bits, const uint8_t* mask, size_t size, uint8_t* gathered) {
  uint64_t waiting = 0;  // bits that fill no byte yet
  int number = 0;
  for (size_t first = 0; first < size; first += kWordBytes) {
    const size_t some = std::min(kWordBytes, size - first);
    const uint64_t word = load(bits + first, some);
    for (uint64_t places = load(mask + first, some); places != 0; places &= places - 1) {
      waiting |= (word >> std::countr_zero(places) & 1) << number;
      if (++number == kWordBits) {
        std::memcpy(gathered, &waiting, kWordBytes);
        gathered += kWordBytes;
        waiting = 0;
        number = 0;
      }
    }
  }
  std::memcpy(gathered, &waiting, (static_cast<size_t>(number) + 7) / 8);
}

void scatter_bits(const uint8_t* gathered, const uint8_t* mask, size_t size, uint8_t* bits) {
  size_t next = 0;
  for (size_t first = 0; first < size; first += kWordBytes) {
    const size_t some = std::min(kWordBytes, size - first);
    uint64_t word = 0;
    for (uint64_t places = load(mask + first, some); places != 0; places &= places - 1, ++next) {
      word |= uint64_t{gathered[next / 8]} >> next % 8 << 63 >> (63 - std::countr_zero(places));
    }
    std::memcpy(bits + first, &word, some);
  }
}

}  // namespace bitfleet
