// Every member works once a call, and the parts of a range are the range.
#include "bnncore/thread_pool.h"

#include <atomic>

#include "check.h"

namespace bitfleet::test {

TEST(every_member_runs_once) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    CHECK_EQUAL(pool.num_threads(), threads);
    std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
    for (int round = 0; round < 50; ++round) pool.run([&](int member) { ++calls[static_cast<size_t>(member)]; });
    for (const std::atomic<int>& count : calls) CHECK_EQUAL(count.load(), 50);
  }
}

TEST(parts_follow_each_other) {
  for (int count : {0, 1, 5, 1000, INT32_MAX}) {
    for (int members : {1, 2, 3, 64}) {
      int end = 0;
      for (int member = 0; member < members; ++member) {
        const Range part = partition(count, members, member);
        CHECK_EQUAL(part.begin, end);
        CHECK(part.end >= part.begin);
        end = part.end;
      }
      CHECK_EQUAL(end, count);
    }
  }
}

}  // namespace bitfleet::test
