// Bit-sliced whole numbers modulo 2^k, element by element.
#include "bnncore/ring.h"

#include "check.h"

namespace bitfleet::test {

namespace {

constexpr int kBits[] = {1, 2, 6, 7, 8, 33, 63, 64};
constexpr size_t kCounts[] = {1, 63, 64, 65, 511, 512, 513, 1300};

uint64_t modulo(uint64_t value, int bits) { return bits == 64 ? value : value & ((uint64_t{1} << bits) - 1); }

uint64_t element(const Array<uint8_t>& planes, size_t i, int bits) {
  uint64_t value = 0;
  for (int j = 0; j < bits; ++j) {
    const size_t plane = i / kRingBlock * static_cast<size_t>(bits) + static_cast<size_t>(j);
    const uint64_t bit = planes[plane * kRingPlane + i % kRingBlock / 8] >> i % 8 & 1;
    value |= bit << j;
  }
  return value;
}

Array<uint8_t> random_planes(size_t count, int bits, size_t misalignment, Random& random) {
  Array<uint8_t> planes(ring_blocks(count) * static_cast<size_t>(bits) * kRingPlane, misalignment);
  planes.generate([&] { return random.next() >> 17; });
  return planes;
}

}  // namespace

TEST(ring_adds_and_subtracts) {
  Random random(1);
  for (int bits : kBits) {
    for (size_t count : {size_t{1}, size_t{513}}) {
      for (size_t misalignment : {0, 1, 7}) {
        const Array<uint8_t> before = random_planes(count, bits, misalignment, random);
        const Array<uint8_t> other = random_planes(count, bits, 3, random);
        Array<uint8_t> sum = before, difference = before;
        ring_add(sum.data(), other.data(), bits, ring_blocks(count));
        ring_subtract(difference.data(), other.data(), bits, ring_blocks(count));
        for (size_t i = 0; i < ring_blocks(count) * kRingBlock; ++i) {
          const uint64_t a = element(before, i, bits), b = element(other, i, bits);
          CHECK_EQUAL(element(sum, i, bits), modulo(a + b, bits));
          CHECK_EQUAL(element(difference, i, bits), modulo(a - b, bits));
        }
        sum.check_guards(__FILE__, __LINE__);
        difference.check_guards(__FILE__, __LINE__);
      }
    }
  }
}

TEST(ring_adds_a_vector_to_itself) {
  Random random(2);
  Array<uint8_t> planes = random_planes(700, 9, 0, random);
  const Array<uint8_t> before = planes;
  ring_add(planes.data(), planes.data(), 9, ring_blocks(700));
  for (size_t i = 0; i < 1024; ++i) CHECK_EQUAL(element(planes, i, 9), modulo(2 * element(before, i, 9), 9));
}

TEST(ring_writes_and_reads) {
  Random random(3);
  for (int bits : kBits) {
    for (size_t count : kCounts) {
      Array<int64_t> values(count, 1), back(count, 1);
      values.generate([&] { return static_cast<int64_t>(random.next()); });
      Array<uint8_t> planes = random_planes(count, bits, 1, random);  // what was there goes
      ring_write(values.data(), count, bits, planes.data());
      ring_read(planes.data(), count, bits, back.data());
      for (size_t i = 0; i < ring_blocks(count) * kRingBlock; ++i) {
        const uint64_t wanted = i < count ? modulo(static_cast<uint64_t>(values[i]), bits) : 0;
        CHECK_EQUAL(element(planes, i, bits), wanted);
        if (i < count) CHECK_EQUAL(static_cast<uint64_t>(back[i]), wanted);
      }
      planes.check_guards(__FILE__, __LINE__);
      back.check_guards(__FILE__, __LINE__);
    }
  }
}

}  // namespace bitfleet::test
