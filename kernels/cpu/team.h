// team.h: a small set of threads that splits one operator over cores (latency mode).
//
// The caller is a member: a team of one has no threads. Jobs are handed out by an atomic counter,
// so a thread that the system took off its core takes fewer jobs and nobody waits for a share
// fixed beforehand; a thread that never woke is not waited for at all. Idle threads spin briefly,
// because the next operator of a forward pass follows within microseconds, then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace minibert {

class Team {
 public:
  using Job = void (*)(void* context, int64_t job, int worker);

  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // Calls job(context, i, worker) for i in 0..num_jobs, worker in 0..size; returns when all ended.
  void run(int64_t num_jobs, Job job, void* context);

 private:
  void work(int worker);
  void take_jobs(int worker);

  // state_ = round << 32 | kOpen | members at work. Members enter a round by adding themselves
  // while it is open; the caller closes it when the jobs are given out and waits for those inside.
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kMembers = kOpen - 1;

  const int size_;
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> next_job_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  int64_t num_jobs_ = 0;
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace minibert
