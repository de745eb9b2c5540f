// Engines of one instruction set.
#pragma once

#include <cstdlib>
#include <string>

namespace bitfleet::test {

// Chooses the instruction set of engines made in its lifetime.
class ForcedIsa {
 public:
  explicit ForcedIsa(const std::string& isa) {
    const char* before = std::getenv("BITFLEET_ISA");
    if (before != nullptr) before_ = before;
    setenv("BITFLEET_ISA", isa.c_str(), 1);
  }
  ~ForcedIsa() {
    if (before_.empty()) {
      unsetenv("BITFLEET_ISA");
    } else {
      setenv("BITFLEET_ISA", before_.c_str(), 1);
    }
  }
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;

 private:
  std::string before_;
};

}  // namespace bitfleet::test
