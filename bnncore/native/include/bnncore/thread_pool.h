// A fixed team of threads for one engine: no allocation and no lock in a step, static partition of the work.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

namespace bitfleet {

class ThreadPool {
 public:
  // The calling thread is member 0; num_threads - 1 others are started.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(member) once on every member and returns when all are done. `work` must not throw.
  template <typename Work>
  void run(Work&& work) {
    run_erased([](void* context, int member) { (*static_cast<Work*>(context))(member); }, &work);
  }

 private:
  using Call = void (*)(void* context, int member);

  void run_erased(Call call, void* context);
  void serve(int member);

  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> busy_{0};
  bool stopping_ = false;
};

// The part of [0, count) that belongs to `member`: contiguous, the same for every run.
struct Range {
  int begin;
  int end;
};
constexpr Range partition(int count, int num_members, int member) {
  return {static_cast<int>(int64_t{count} * member / num_members),
          static_cast<int>(int64_t{count} * (member + 1) / num_members)};
}

}  // namespace bitfleet
