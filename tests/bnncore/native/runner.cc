// Runs every test of the program, or those whose name contains --only, or does not contain --except.
//
//   native_tests [--only WORD] [--except WORD] [--golden FILE [--write]] [--json FILE]
//
// --golden names the digests that training must end with (engine_test.cc); --write makes that file. --json leaves the
// instruction set that was chosen, the number of tests and one digest over all golden digests that were met.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "check.h"
#include "golden.h"

namespace bitfleet::test {

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

Registration::Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }

Registration::Registration(const char* name, void (*run)(const Kernels&, const Kernels&)) {
  for (const std::string& isa : available_isas()) {
    tests().push_back({std::string(name) + "/" + isa, [=] { run(kernels_for(isa), kernels_for("portable")); }});
  }
}

}  // namespace bitfleet::test

int main(int count, char** arguments) {
  using namespace bitfleet;
  std::string only, unwanted, golden, json;
  bool write = false;
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    std::string* value = option == "--only"     ? &only
                         : option == "--except" ? &unwanted
                         : option == "--golden" ? &golden
                         : option == "--json"   ? &json
                                                : nullptr;
    if (option == "--write") {
      write = true;
    } else if (value != nullptr && i + 1 < count) {
      *value = arguments[++i];
    } else {
      std::fprintf(stderr, "usage: %s [--only WORD] [--except WORD] [--golden FILE [--write]] [--json FILE]\n",
                   arguments[0]);
      return 2;
    }
  }
  test::Golden& digests = test::Golden::instance();
  if (!golden.empty() && !write && !digests.read(golden)) {
    std::fprintf(stderr, "%s cannot be read\n", golden.c_str());
    return 2;
  }

  std::string sets;
  for (const std::string& isa : available_isas()) sets += " " + isa;
  const char* chosen = selected_kernels().isa;
  std::printf("instruction sets:%s; chosen: %s\n", sets.c_str(), chosen);
  int run = 0, failed = 0;
  for (const test::Test& one : test::tests()) {
    if (one.name.find(only) == std::string::npos) continue;
    if (!unwanted.empty() && one.name.find(unwanted) != std::string::npos) continue;
    ++run;
    const auto start = std::chrono::steady_clock::now();
    std::string complaint;
    try {
      one.run();
    } catch (const std::exception& error) {
      complaint = error.what();
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (!complaint.empty()) {
      ++failed;
      std::printf("FAILED %s: %s\n", one.name.c_str(), complaint.c_str());
    } else if (seconds.count() > 1.0) {
      std::printf("slow   %s: %.1f s\n", one.name.c_str(), seconds.count());
    }
  }
  if (only.empty() && !golden.empty() && !write) {
    for (const std::string& name : digests.missed()) {
      ++failed;
      std::printf("FAILED: nothing computed the golden digest of %s\n", name.c_str());
    }
  }
  std::printf("%d tests, %d failed, digest %s\n", run, failed, digests.summary().c_str());
  if (failed != 0 || run == 0) return 1;
  if (write && !digests.write(golden)) return 2;
  if (!json.empty()) {
    std::ofstream file(json);
    file << "{\"isa\": \"" << chosen << "\", \"tests\": " << run << ", \"digest\": \"" << digests.summary() << "\"}\n";
    if (!file.flush()) return 2;
  }
  return 0;
}
