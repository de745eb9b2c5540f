// Which kernels are chosen, and that a set this machine lacks is refused by name.
#include <cstdlib>

#include "check.h"

namespace bitfleet::test {

TEST(the_fastest_set_is_the_default) {
  const char* forced = std::getenv("BITFLEET_ISA");
  const std::vector<std::string> sets = available_isas();
  CHECK_EQUAL(sets.front(), std::string("portable"));
  CHECK_EQUAL(std::string(selected_kernels().isa), forced != nullptr && *forced != 0 ? forced : sets.back());
  for (const std::string& isa : sets) CHECK_EQUAL(std::string(kernels_for(isa).isa), isa);
}

TEST(a_set_that_is_not_here_is_refused) {
  const std::vector<std::string> here = available_isas();
  for (const std::string isa : {"avx2", "avx512", "neon", "neon_dotprod", "vax", ""}) {
    bool available = false;
    for (const std::string& name : here) available = available || name == isa;
    if (available) continue;
    std::string complaint;
    try {
      kernels_for(isa);
    } catch (const std::invalid_argument& error) {
      complaint = error.what();
    }
    CHECK(complaint.find("'" + isa + "'") != std::string::npos);
    CHECK(complaint.find("portable") != std::string::npos);
  }
}

}  // namespace bitfleet::test
