#include "bnncore/thread_pool.h"

#include <chrono>

namespace bitfleet {

namespace {

// How long a thread looks again before it sleeps: to be woken takes some of these, and a small network's layers follow
// each other faster than that.
constexpr std::chrono::microseconds kPatience{50};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`.
template <typename T>
void wait_for_change(const std::atomic<T>& value, T old) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() - start < kPatience);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int member = 1; member < num_threads; ++member) workers_.emplace_back([this, member] { serve(member); });
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(Call call, void* context) {
  if (workers_.empty()) {
    call(context, 0);
    return;
  }
  call_ = call;
  context_ = context;
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  call(context, 0);
  for (int left = busy_.load(std::memory_order_acquire); left != 0; left = busy_.load(std::memory_order_acquire)) {
    wait_for_change(busy_, left);
  }
}

void ThreadPool::serve(int member) {
  uint32_t seen = 0;
  for (;;) {
    wait_for_change(generation_, seen);
    const uint32_t current = generation_.load(std::memory_order_acquire);
    if (current == seen) continue;
    seen = current;
    if (stopping_) return;
    call_(context_, member);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

}  // namespace bitfleet
