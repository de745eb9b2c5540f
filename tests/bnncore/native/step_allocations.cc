// Counts calls of malloc and friends while the engine trains: there must be none.
//
// The program defines the C allocation functions itself, so every call in the process passes through here, the C++
// library's included; glibc's own are reached by their reserved names. The address sanitizer has done that already, and
// tells who asks.
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "bnncore/engine.h"
#include "bnncore/paper_engine.h"
#include "bnncore/standard_engine.h"
#include "bnncore/standard_residual_engine.h"

static std::atomic<bool> counting{false};
static std::atomic<int> calls{0};

static void note() {
  if (counting.load(std::memory_order_relaxed)) calls.fetch_add(1, std::memory_order_relaxed);
}

#ifdef __SANITIZE_ADDRESS__
// Of sanitizer/allocator_interface.h, which not every package of a compiler brings.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*taken)(const volatile void*, size_t),
                                                         void (*given_back)(const volatile void*));
static void note_taken(const volatile void*, size_t) { note(); }
static void note_given_back(const volatile void* block) {
  if (block != nullptr) note();
}
static bool hook() { return __sanitizer_install_malloc_and_free_hooks(note_taken, note_given_back) != 0; }
#else
static bool hook() { return true; }

extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* block, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* block);
}

extern "C" {
void* malloc(size_t size) {
  note();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  note();
  return __libc_calloc(count, size);
}
void* realloc(void* block, size_t size) {
  note();
  return __libc_realloc(block, size);
}
void* memalign(size_t alignment, size_t size) {
  note();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  note();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** block, size_t alignment, size_t size) {
  note();
  *block = __libc_memalign(alignment, size);
  return *block == nullptr;
}
void free(void* block) {
  if (block != nullptr) note();
  __libc_free(block);
}
}
#endif

int main() {
  using namespace bitfleet;
  if (!hook()) {
    std::printf("no hook\n");
    return 1;
  }
  // The hook must see what it claims to see.
  counting = true;
  ::operator delete(::operator new(4));
  counting = false;
  if (calls != 2) {
    std::printf("the hook saw %d of 2 calls\n", calls.load());
    return 1;
  }

  const auto dense = [](const char* linear, const char* norm, int height, int width, int in, int out) {
    return BlockSpec{linear, norm, height, width, in, out, height, width, 1, 0, 0, 1, 1, Pool::kNone, 1, 1};
  };
  // Dense; padded with a pool before the norm; unpadded with a pool after the sign.
  const std::vector<std::vector<BlockSpec>> networks = {
      {dense("dense1", "norm1", 1, 1, 100, 70), dense("dense2", "norm2", 1, 1, 70, 10)},
      {{"conv1", "norm1", 10, 10, 1, 20, 3, 3, 1, 1, 1, 10, 10, Pool::kNone, 1, 1},
       {"conv2", "norm2", 10, 10, 20, 70, 3, 3, 1, 1, 1, 10, 10, Pool::kBeforeNorm, 2, 2},
       {"conv3", "norm3", 5, 5, 70, 17, 2, 2, 1, 0, 0, 4, 4, Pool::kAfterSign, 2, 2},
       dense("dense1", "norm4", 2, 2, 17, 10)}};
  // A stem of 5 x 5 kernels with relu and a pool whose windows overlap, a shortcut behind a pool.
  const auto real = [](BlockSpec conv, const char* name) {
    conv.linear = name;
    conv.norm = std::string(name) + "_norm";
    return conv;
  };
  const StemSpec stem{real({"", "", 10, 10, 1, 6, 5, 5, 1, 2, 2, 10, 10, Pool::kNone, 1, 1}, "stem"),
                      true,
                      true,
                      3,
                      3,
                      2,
                      2,
                      1,
                      1,
                      5,
                      5,
                      "second",
                      32767 / 2};
  const UnitSpec plain{
      real({"", "", 5, 5, 6, 6, 3, 3, 1, 1, 1, 5, 5, Pool::kNone, 1, 1}, "u1"), false, 32767 / 2, 0, false, {}};
  const UnitSpec halved{
      real({"", "", 5, 5, 6, 70, 2, 2, 2, 0, 0, 2, 2, Pool::kNone, 1, 1}, "u2"),        true, 32767 / 2, 1, true,
      {real({"", "", 2, 2, 6, 70, 1, 1, 1, 0, 0, 2, 2, Pool::kNone, 1, 1}, "r2"), 2, 2}};
  const ResidualSpec residual{stem, {plain, halved}, true, "dense", 10};
  int failures = 0;
  const auto count_calls = [&](auto& engine, const char* name, size_t network, OptimizerKind kind) {
    engine.initialise(7);
    for (int i = 0; i < 33 * 100; ++i) engine.input()[i] = static_cast<uint8_t>(i * 37);
    for (int i = 0; i < 33; ++i) engine.labels()[i] = i % 10;
    engine.evaluate(33, nullptr);  // its threads have begun, for which a sanitizer allocates
    calls = 0;
    counting = true;  // the very first step too, which measures its scales
    for (int step = 0; step < 5; ++step) engine.step(1.0f);
    engine.evaluate(33, nullptr);
    counting = false;
    std::printf("%s, network %zu, optimizer %d, %d threads: %d calls\n", name, network, static_cast<int>(kind),
                engine.num_threads(), calls.load());
    failures += calls != 0;
  };
  for (OptimizerKind kind : {OptimizerKind::kLatent8, OptimizerKind::kLatent8Momentum, OptimizerKind::kBop,
                             OptimizerKind::kAdam, OptimizerKind::kSgd}) {
    const OptimizerParams optimizer{kind,   2e-3f, 0.9f,  32.0f, 1e-3f, 0.05f, 0.25f, 0.9f,
                                    0.999f, 1e-8f, 1e-3f, 40,    500,   1.25f, 0.98f};
    for (int threads : {1, 2, 3}) {
      for (size_t network = 0; network < networks.size(); ++network) {
        Engine engine(networks[network], optimizer, 33, threads);
        count_calls(engine, "bitfleet", network, kind);
        if (!is_float(kind)) continue;
        StandardEngine standard(networks[network], optimizer, 33, threads);
        count_calls(standard, "standard", network, kind);
        PaperEngine paper(networks[network], optimizer, 33, threads);
        count_calls(paper, "paper", network, kind);
      }
      ResidualEngine engine(residual, optimizer, 33, threads);
      count_calls(engine, "bitfleet, residual", networks.size(), kind);
      if (!is_float(kind)) continue;
      StandardResidualEngine standard(residual, optimizer, 33, threads);
      count_calls(standard, "standard, residual", networks.size(), kind);
    }
  }
  return failures != 0;
}
