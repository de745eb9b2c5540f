// Counter-based randomness: every random number is a function of (seed, step, layer, purpose, index), so results do
// not depend on thread count, tile order or instruction set.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace bitfleet {

// What a stream of random numbers is used for; part of its key, so two uses never share numbers.
enum class Purpose : uint32_t {
  kInitialise = 1,
  kTopGradient = 2,
  kGradY = 3,
  kGradX = 4,
  kUpdate = 5,
  kShuffle = 6,
};

// Finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
constexpr uint64_t split_mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// A family of 2^32 random words under a 64-bit key.
struct RandomStream {
  uint32_t low;
  uint32_t high;
};

constexpr RandomStream random_stream(uint64_t seed, uint64_t step, uint32_t layer, Purpose purpose) {
  uint64_t key = split_mix64(seed);
  key = split_mix64(key ^ step);
  key = split_mix64(key ^ (uint64_t{layer} << 8 | static_cast<uint32_t>(purpose)));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

// Word `index` of a stream. Two multiply rounds with the constants of Wellons' "hash prospector" search (2-round, bias
// 0.11); the key enters before each round. 32-bit operations only, so SSE2 and NEON vectorise it.
constexpr uint32_t random_word(RandomStream stream, uint32_t index) {
  uint32_t x = index ^ stream.low;
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x += stream.high;
  x ^= x >> 15;
  x *= 0xd35a2d97u;
  x ^= x >> 15;
  return x;
}

// Elements i and i + 16 of each block share a word: rounding an element needs but half of one.
inline constexpr int kHalvesBlock = 32;

// Sixteen random bits for element `index` of a stream.
constexpr uint32_t random_half(RandomStream stream, uint32_t index) {
  const uint32_t word = random_word(stream, index >> 5 << 4 | (index & 15u));
  return (index & 16u) != 0 ? word & 0xffffu : word >> 16;
}

// The number of element (row, column) where rows begin a block each, so that vectors need not cut words apart.
constexpr uint32_t padded_index(size_t row, size_t columns, size_t column) {
  constexpr size_t kBlock = kHalvesBlock;
  return static_cast<uint32_t>(row * ((columns + kBlock - 1) / kBlock * kBlock) + column);
}

// Uniform in (-1, 1), symmetric: word `index` of the stream as an odd multiple of 2^-24.
inline float random_uniform(RandomStream stream, uint32_t index) {
  const int32_t odd = static_cast<int32_t>(random_word(stream, index) >> 8) * 2 - 0xffffff;
  return static_cast<float>(odd) / 16777216.0f;
}

// A float latent weight to start from: uniform with the variance 1 / fan-in of the paper's code.
inline float initial_weight(RandomStream stream, uint32_t index, int fan_in) {
  return random_uniform(stream, index) * std::sqrt(3.0f / static_cast<float>(fan_in));
}

}  // namespace bitfleet
