// The tests' own tools notice what they are there to notice.
#include "check.h"

#include "golden.h"

namespace bitfleet::test {

namespace {

template <typename Action>
bool fails(Action action) {
  try {
    action();
  } catch (const Failure&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(a_different_digest_fails) {
  Golden golden;
  golden.meet("network", "1");
  golden.meet("network", "1");
  CHECK(fails([&] { golden.meet("network", "2"); }));
}

TEST(fnv1a_is_the_published_function) {
  CHECK_EQUAL(Fnv1a().hex(), std::string("cbf29ce484222325"));
  Fnv1a digest;
  digest.add("foobar", 6);
  CHECK_EQUAL(digest.hex(), std::string("85944171f73967e8"));
}

TEST(a_different_bit_fails) {
  Array<float> found(3), wanted(3);
  CHECK(!fails([&] { CHECK_SAME(found, wanted, "zeros"); }));
  found[2] = -0.0f;
  CHECK(fails([&] { CHECK_SAME(found, wanted, "signed zeros"); }));
}

#if !defined(__SANITIZE_ADDRESS__)  // which ends the program at the write itself
TEST(a_write_outside_fails) {
  for (int offset : {-1, 5}) {
    Array<int8_t> values(5, 3);
    int8_t* volatile outside = values.data() + offset;
    *outside = 1;
    CHECK(fails([&] { CHECK_SAME(values, values, "guards"); }));
  }
}
#endif

}  // namespace bitfleet::test
