// What the native tests share: a register of tests, checks, random operands and arrays with guarded ends.
//
//   TEST(name) { ... }          runs once
//   KERNEL_TEST(name) { ... }   runs once per instruction set, with `kernels` of that set beside `portable`
//
// A failed check throws, which ends its test. runner.cc finds all tests by themselves.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "bnncore/dispatch.h"
#include "bnncore/random.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
#endif

namespace bitfleet::test {

struct Test {
  std::string name;
  std::function<void()> run;
};

// Every test of the program, in the order of the files.
std::vector<Test>& tests();

struct Registration {
  Registration(const char* name, void (*run)());
  Registration(const char* name, void (*run)(const Kernels& kernels, const Kernels& portable));
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream text;
  text << file << ":" << line << ": ";
  (text << ... << parts);
  throw Failure(text.str());
}

// Random numbers that are the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() { return state_ = split_mix64(state_); }
  // Uniform enough in [low, high].
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  float real(float limit) { return static_cast<float>(between(-0xffffff, 0xffffff)) / 16777215.0f * limit; }

 private:
  uint64_t state_;
};

// `count` elements that start `misalignment` elements after a 64-byte boundary, between two guards: what is written
// past either end is noticed by check_guards(), and under AddressSanitizer what is read there ends the program.
template <typename T>
class Array {
 public:
  explicit Array(size_t count, size_t misalignment = 0) : count_(count) {
    bytes_.assign(kGuard + 64 + (misalignment + count) * sizeof(T) + kGuard, kPattern);
    const size_t start = reinterpret_cast<uintptr_t>(bytes_.data() + kGuard);
    before_ = kGuard + (64 - start % 64) % 64 + misalignment * sizeof(T);
    std::memset(bytes_.data() + before_, 0, count * sizeof(T));
    ASAN_POISON_MEMORY_REGION(bytes_.data(), before_);
    ASAN_POISON_MEMORY_REGION(bytes_.data() + after(), bytes_.size() - after());
  }
  Array(const Array& other) : Array(other.count_, other.misalignment()) {
    std::memcpy(data(), other.data(), count_ * sizeof(T));
  }
  Array& operator=(const Array&) = delete;
  ~Array() { ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size()); }

  T* data() { return reinterpret_cast<T*>(bytes_.data() + before_); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + before_); }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }

  void fill(int byte) { std::memset(data(), byte, count_ * sizeof(T)); }
  template <typename Make>
  void generate(Make make) {
    for (size_t i = 0; i < count_; ++i) data()[i] = static_cast<T>(make());
  }

  void check_guards(const char* file, int line) const {
    ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size());
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (i == before_ && i != after()) i = after();
      if (bytes_[i] != kPattern) {
        fail(file, line, "byte ", static_cast<int64_t>(i) - static_cast<int64_t>(before_), " outside of ",
             count_ * sizeof(T), " bytes was written");
      }
    }
  }

 private:
  static constexpr size_t kGuard = 128;
  static constexpr uint8_t kPattern = 0xa5;

  size_t after() const { return before_ + count_ * sizeof(T); }
  size_t misalignment() const { return reinterpret_cast<uintptr_t>(data()) % 64 / sizeof(T); }

  size_t count_;
  size_t before_ = 0;
  std::vector<uint8_t> bytes_;
};

// Bit for bit, so that -0.0 differs from 0.0 and a NaN equals itself.
template <typename T>
void check_same(const Array<T>& found, const Array<T>& wanted, const std::string& what, const char* file, int line) {
  found.check_guards(file, line);
  wanted.check_guards(file, line);
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::memcmp(&found[i], &wanted[i], sizeof(T)) != 0) {
      fail(file, line, what, ": element ", i, " of ", wanted.size(), " is ", +found[i], " instead of ", +wanted[i]);
    }
  }
}

// Words for `rows` rows of `depth` random signs; bits past the depth are zero.
inline void random_signs(Random& random, Array<uint64_t>& words, int rows, int depth, size_t stride) {
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < words_for(depth); ++i) {
      const int used = depth - i * kWordBits;
      const uint64_t mask = used >= kWordBits ? ~uint64_t{0} : (uint64_t{1} << used) - 1;
      words[static_cast<size_t>(r) * stride + static_cast<size_t>(i)] = random.next() & mask;
    }
  }
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace bitfleet::test

#define TEST(name)                                                               \
  static void name();                                                            \
  static const bitfleet::test::Registration registration_of_##name(#name, name); \
  static void name()

#define KERNEL_TEST(name)                                                                \
  static void name(const bitfleet::Kernels& kernels, const bitfleet::Kernels& portable); \
  static const bitfleet::test::Registration registration_of_##name(#name, name);         \
  static void name(const bitfleet::Kernels& kernels, const bitfleet::Kernels& portable)

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) bitfleet::test::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_EQUAL(found, wanted)                                                                         \
  do {                                                                                                     \
    const auto found_value = (found);                                                                      \
    const auto wanted_value = (wanted);                                                                    \
    if (!(found_value == wanted_value))                                                                    \
      bitfleet::test::fail(__FILE__, __LINE__, #found, " is ", found_value, " instead of ", wanted_value); \
  } while (false)

#define CHECK_SAME(found, wanted, what) bitfleet::test::check_same(found, wanted, what, __FILE__, __LINE__)
