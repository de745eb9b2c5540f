// One-bit differences, element by element from their definition (bnncore/reference/signs.py).
#include "bnncore/signs.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "bnncore/sparse_bits.h"
#include "check.h"

namespace bitfleet::test {

namespace {

constexpr int kCounts[] = {1, 2, 7, 8, 9, 31, 64, 65, 1023, 1024, 1025, 2051};

bool bit(const Array<uint8_t>& bits, size_t k) { return (bits[k / 8] >> k % 8 & 1) != 0; }

Array<uint8_t> random_bits(int count, size_t misalignment, Random& random) {
  Array<uint8_t> bits(row_bytes(count), misalignment);
  bits.generate([&] { return random.next(); });
  if (count % 8 != 0) bits[bits.size() - 1] &= static_cast<uint8_t>((1 << count % 8) - 1);
  return bits;
}

// Bits beyond a row's elements are zero, and so are those of elements that are not there.
void check_unused(const Array<uint8_t>& bits, const Array<uint8_t>* mask, int count) {
  for (size_t k = 0; k < 8 * bits.size(); ++k) {
    if (k >= static_cast<size_t>(count) || (mask != nullptr && !bit(*mask, k))) CHECK(!bit(bits, k));
  }
}

struct Row {
  Array<int8_t> latent, error, replica;
  Array<float> master;
  Array<uint8_t> mask;

  Row(int count, size_t misalignment, Random& random)
      : latent(static_cast<size_t>(count), misalignment),
        error(static_cast<size_t>(count), misalignment),
        replica(static_cast<size_t>(count), misalignment),
        master(static_cast<size_t>(count), misalignment),
        mask(random_bits(count, misalignment, random)) {
    const int64_t spread = random.between(1, 127);
    latent.generate([&] { return random.between(-spread, spread); });
    error.generate([&] { return random.between(-spread, spread); });
    replica.generate([&] { return random.between(-127, 127); });
    master.generate([&] { return random.real(1.0f); });
  }
};

template <typename Check>
void over_rows(uint64_t seed, Check check) {
  Random random(seed);
  for (int count : kCounts) {
    for (size_t misalignment : {0, 1, 3}) check(Row(count, misalignment, random), count, misalignment, random);
  }
}

uint16_t wanted_scale(int64_t total, int64_t count) {
  return count == 0 ? 0 : static_cast<uint16_t>(std::min<int64_t>((2 * total + count) / (2 * count), 65535));
}

}  // namespace

KERNEL_TEST(signs_encode_latent_weights) {
  over_rows(1, [&](const Row& row, int count, size_t misalignment, Random&) {
    for (const Array<int8_t>* error : {static_cast<const Array<int8_t>*>(nullptr), &row.error}) {
      for (const Array<uint8_t>* mask : {static_cast<const Array<uint8_t>*>(nullptr), &row.mask}) {
        Array<uint8_t> bits(row_bytes(count), misalignment);
        Array<int8_t> remaining(static_cast<size_t>(count), misalignment);
        const SignSource source{row.latent.data(), error == nullptr ? nullptr : error->data(), nullptr,
                                row.replica.data()};
        const uint16_t scale = kernels.signs->encode_row(source, mask == nullptr ? nullptr : mask->data(), count,
                                                         bits.data(), remaining.data());
        const auto x = [&](size_t k) {
          return row.latent[k] - row.replica[k] + (error == nullptr ? 0 : int{(*error)[k]});
        };
        const auto sent = [&](size_t k) { return mask == nullptr || bit(*mask, k); };
        int64_t total = 0, number = 0;
        for (size_t k = 0; k < remaining.size(); ++k) {
          if (!sent(k)) continue;
          total += 256 * std::abs(x(k));
          ++number;
        }
        CHECK_EQUAL(scale, wanted_scale(total, number));
        for (size_t k = 0; k < remaining.size(); ++k) {
          const int told = !sent(k) ? 0 : x(k) < 0 ? -int{scale} : int{scale};
          const int fine = 256 * x(k) - told;
          const int steps = std::min((std::abs(fine) + 128) / 256, 127);
          CHECK_EQUAL(int{remaining[k]}, fine < 0 ? -steps : steps);
          CHECK_EQUAL(bit(bits, k), sent(k) && x(k) < 0);
        }
        check_unused(bits, mask, count);
        bits.check_guards(__FILE__, __LINE__);
        remaining.check_guards(__FILE__, __LINE__);
      }
    }
  });
}

KERNEL_TEST(signs_encode_a_master) {
  over_rows(2, [&](const Row& row, int count, size_t misalignment, Random&) {
    for (const Array<uint8_t>* mask : {static_cast<const Array<uint8_t>*>(nullptr), &row.mask}) {
      Array<uint8_t> bits(row_bytes(count), misalignment);
      const SignSource source{nullptr, nullptr, row.master.data(), row.replica.data()};
      const uint16_t scale =
          kernels.signs->encode_row(source, mask == nullptr ? nullptr : mask->data(), count, bits.data(), nullptr);
      int64_t total = 0, number = 0;
      for (size_t k = 0; k < row.master.size(); ++k) {
        const double real = static_cast<double>(row.master[k]) * 127.0 - row.replica[k];
        const int64_t x = std::llrint(real * (1 << 20));
        const bool sent = mask == nullptr || bit(*mask, k);
        CHECK_EQUAL(bit(bits, k), sent && x < 0);
        if (sent) total += std::llabs(x);
        number += sent;
      }
      CHECK_EQUAL(scale, wanted_scale(total, number << 12));
      check_unused(bits, mask, count);
      bits.check_guards(__FILE__, __LINE__);
    }
  });
}

KERNEL_TEST(signs_sizes) {
  over_rows(3, [&](const Row& row, int count, size_t misalignment, Random&) {
    if (count > kSignBlock) return;
    Array<uint16_t> steps(static_cast<size_t>(count), misalignment), fine(static_cast<size_t>(count), misalignment);
    kernels.signs->sizes({row.latent.data(), row.error.data(), nullptr, row.replica.data()}, count, steps.data());
    kernels.signs->sizes({nullptr, nullptr, row.master.data(), row.replica.data()}, count, fine.data());
    for (size_t k = 0; k < steps.size(); ++k) {
      CHECK_EQUAL(int{steps[k]}, std::abs(row.latent[k] - row.replica[k] + row.error[k]));
      const double real = static_cast<double>(row.master[k]) * 127.0 - row.replica[k];
      CHECK_EQUAL(int64_t{fine[k]}, std::llabs(std::llrint(real * (1 << 20))) >> 12);
    }
    steps.check_guards(__FILE__, __LINE__);
    fine.check_guards(__FILE__, __LINE__);
  });
}

KERNEL_TEST(signs_apply_and_expand) {
  over_rows(4, [&](const Row& row, int count, size_t misalignment, Random& random) {
    for (const Array<uint8_t>* mask : {static_cast<const Array<uint8_t>*>(nullptr), &row.mask}) {
      for (int64_t scale : {int64_t{0}, int64_t{127}, int64_t{128}, int64_t{65535}, random.between(0, 65535)}) {
        Array<uint8_t> bits = random_bits(count, misalignment, random);
        Array<int8_t> moved = row.replica;
        Array<int32_t> values(moved.size(), misalignment);
        const uint8_t* present = mask == nullptr ? nullptr : mask->data();
        kernels.signs->apply_row(moved.data(), bits.data(), present, count, static_cast<uint16_t>(scale));
        kernels.signs->expand_row(bits.data(), present, count, static_cast<uint16_t>(scale), values.data());
        for (size_t k = 0; k < moved.size(); ++k) {
          const int sign = mask != nullptr && !bit(*mask, k) ? 0 : bit(bits, k) ? -1 : 1;
          CHECK_EQUAL(values[k], sign * static_cast<int32_t>(scale));
          const int next = row.replica[k] + sign * static_cast<int>((scale + 128) >> 8);
          CHECK_EQUAL(int{moved[k]}, std::clamp(next, -127, 127));
        }
        moved.check_guards(__FILE__, __LINE__);
        values.check_guards(__FILE__, __LINE__);
      }
    }
  });
}

TEST(signs_fold) {
  Random random(5);
  for (int count : kCounts) {
    for (int num_terms = 1; num_terms <= kFoldTerms; ++num_terms) {
      Array<int64_t> sums(static_cast<size_t>(count), 1);
      sums.generate([&] { return random.between(-1000, 1000); });
      Array<int64_t> wanted = sums;
      std::vector<Array<uint8_t>> bits, masks;
      std::vector<uint16_t> scales;
      for (int j = 0; j < num_terms; ++j) {
        bits.push_back(random_bits(count, static_cast<size_t>(j), random));
        masks.push_back(random_bits(count, static_cast<size_t>(j), random));
        scales.push_back(static_cast<uint16_t>(random.next()));
      }
      std::vector<SignTerm> terms;
      for (size_t j = 0; j < bits.size(); ++j) {
        const bool masked = count % 2 == 0 ? j % 3 == 1 : j % 2 == 1;
        const int64_t weight = random.between(-(int64_t{1} << 40), int64_t{1} << 40);
        terms.push_back({&scales[j], bits[j].data(), masked ? masks[j].data() : nullptr, weight});
        for (size_t k = 0; k < bits[j].size(); ++k) bits[j][k] &= masked ? masks[j][k] : uint8_t{0xff};
        for (size_t k = 0; k < wanted.size(); ++k) {
          const int sign = masked && !bit(masks[j], k) ? 0 : bit(bits[j], k) ? -1 : 1;
          wanted[k] += sign * weight * scales[j];
        }
      }
      fold_signs(sums.data(), terms.data(), num_terms, 1, count);
      CHECK_SAME(sums, wanted, text(num_terms, " terms of ", count));
    }
  }
}

TEST(signs_gather_and_scatter) {
  Random random(7);
  for (size_t size : {1, 2, 7, 8, 9, 16, 31, 200}) {
    for (int density : {0, 1, 4, 8}) {  // of 8
      Array<uint8_t> bits(size, 1), mask(size, 3), back(size, 2);
      mask.generate([&] {
        uint8_t byte = 0;
        for (int i = 0; i < 8; ++i) byte |= static_cast<uint8_t>((random.between(1, 8) <= density) << i);
        return byte;
      });
      bits.generate([&] { return random.next(); });
      for (size_t i = 0; i < size; ++i) bits[i] &= mask[i];
      std::vector<bool> wanted;
      for (size_t k = 0; k < 8 * size; ++k) {
        if (bit(mask, k)) wanted.push_back(bit(bits, k));
      }
      Array<uint8_t> gathered((wanted.size() + 7) / 8, 1);
      gather_bits(bits.data(), mask.data(), size, gathered.data());
      for (size_t k = 0; k < 8 * gathered.size(); ++k) CHECK_EQUAL(bit(gathered, k), k < wanted.size() && wanted[k]);
      gathered.check_guards(__FILE__, __LINE__);
      scatter_bits(gathered.data(), mask.data(), size, back.data());
      CHECK_SAME(back, bits, text(size, " bytes, density ", density));
    }
  }
}

TEST(signs_tell_the_largest) {
  Random random(6);
  for (int count : {5, 8, 1030}) {
    constexpr int kRows = 3;
    Array<int8_t> latent(static_cast<size_t>(kRows * count)), replica(latent.size()), remaining(latent.size());
    latent.generate([&] { return random.between(-3, 3); });
    for (size_t sent : {size_t{1}, latent.size() / 4, latent.size()}) {
      Array<uint8_t> bits(kRows * row_bytes(count)), mask(bits.size());
      uint16_t scales[kRows];
      encode_tensor(portable::sign_kernels, {latent.data(), nullptr, nullptr, replica.data()}, kRows, count, sent,
                    scales, bits.data(), mask.data(), remaining.data());
      // In order of size, the first of equals first, none of 0.
      std::vector<size_t> order;
      for (int size = 3; size > 0; --size) {
        for (size_t k = 0; k < latent.size(); ++k) {
          if (std::abs(latent[k]) == size) order.push_back(k);
        }
      }
      order.resize(std::min(order.size(), sent));
      std::vector<bool> wanted(latent.size());
      for (size_t k : order) wanted[k] = true;
      for (size_t k = 0; k < latent.size(); ++k) {
        const size_t row = k / static_cast<size_t>(count), column = k % static_cast<size_t>(count);
        CHECK_EQUAL(bit(mask, 8 * row * row_bytes(count) + column), wanted[k]);
      }
      mask.check_guards(__FILE__, __LINE__);
    }
  }
}

}  // namespace bitfleet::test
