// Digests that every machine must arrive at. They are 64-bit FNV-1a (Fowler, Noll, Vo): these guard against a different
// bit, not against an adversary.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace bitfleet::test {

class Fnv1a {
 public:
  void add(const void* data, size_t bytes) {
    const uint8_t* byte = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < bytes; ++i) hash_ = (hash_ ^ byte[i]) * 0x100000001b3ull;
  }
  template <typename T>
  void add(const T& value) {
    add(&value, sizeof(value));
  }
  // Sixteen hexadecimal digits.
  std::string hex() const;

 private:
  uint64_t hash_ = 0xcbf29ce484222325ull;
};

// Digests by name, "-" for a space; a line each in the file.
class Golden {
 public:
  static Golden& instance();

  bool read(const std::string& path);
  bool write(const std::string& path) const;
  // Throws Failure where the digest differs from the file's, or from what another instruction set or number of threads
  // arrived at before.
  void meet(const std::string& name, const std::string& digest);
  // In the file, and never met.
  std::vector<std::string> missed() const;
  // One digest over all that were met.
  std::string summary() const;

 private:
  std::string lines() const;

  bool strict_ = false;
  std::map<std::string, std::string> expected_;
  std::map<std::string, std::string> met_;
};

}  // namespace bitfleet::test
