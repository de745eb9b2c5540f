#include "golden.h"

#include <cinttypes>
#include <cstdio>
#include <fstream>

#include "check.h"

namespace bitfleet::test {

std::string Fnv1a::hex() const {
  char digits[17];
  std::snprintf(digits, sizeof(digits), "%016" PRIx64, hash_);
  return digits;
}

Golden& Golden::instance() {
  static Golden golden;
  return golden;
}

bool Golden::read(const std::string& path) {
  std::ifstream file(path);
  std::string name, digest;
  while (file >> name >> digest) expected_[name] = digest;
  strict_ = true;
  return file.eof() && !expected_.empty();
}

bool Golden::write(const std::string& path) const {
  return static_cast<bool>((std::ofstream(path) << lines()).flush());
}

void Golden::meet(const std::string& name, const std::string& digest) {
  const auto [before, first] = met_.emplace(name, digest);
  if (!first && before->second != digest) {
    fail(__FILE__, __LINE__, name, " has digest ", digest, " and had ", before->second, " before");
  }
  if (!strict_) return;
  const auto wanted = expected_.find(name);
  if (wanted == expected_.end()) fail(__FILE__, __LINE__, "there is no golden digest of ", name);
  if (wanted->second != digest) {
    fail(__FILE__, __LINE__, name, " has digest ", digest, " instead of the golden ", wanted->second);
  }
}

std::vector<std::string> Golden::missed() const {
  std::vector<std::string> names;
  for (const auto& [name, digest] : expected_) {
    if (!met_.contains(name)) names.push_back(name);
  }
  return names;
}

std::string Golden::summary() const {
  Fnv1a all;
  const std::string text = lines();
  all.add(text.data(), text.size());
  return all.hex();
}

std::string Golden::lines() const {
  std::string all;
  for (const auto& [name, digest] : met_) all += name + " " + digest + "\n";
  return all;
}

}  // namespace bitfleet::test
