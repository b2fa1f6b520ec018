// team.h: a small set of threads that splits one operator over cores (latency mode).
//
// The caller is a member: a team of one has no threads. Every member begins with a share of
// neighbouring jobs, so that it knows what it takes next and can fetch it ahead; who is done takes
// from the others' shares. A thread that the system took off its core so takes fewer jobs and nobody
// waits for it; a thread that never woke is not waited for at all. Idle threads spin briefly, because
// the next operator of a forward pass follows within microseconds, then sleep. Waking takes some
// 50 us, as long as a short text's tokens: who knows that work is coming wakes them meanwhile.
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

  // At most `size` members: fewer where the system starts no more threads.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // Calls job(context, i, worker) for i in 0..num_jobs, worker in 0..size; returns when all ended.
  // A job must not throw: threads have nobody to tell, and the round would stay open.
  void run(int64_t num_jobs, Job job, void* context);
  // Work is coming: threads that sleep may wake, and wait for it spinning.
  void wake();
  // Whether who took job i most likely takes i + 1.
  bool same_share(int64_t num_jobs, int64_t i) const;

 private:
  void work(int worker);
  void take_jobs(int worker);
  int64_t share_begin(int64_t num_jobs, int worker) const { return num_jobs * worker / size_; }

  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  // state_ = round << 32 | kOpen | members at work. Members enter a round by adding themselves
  // while it is open; the caller closes it when the jobs are given out and waits for those inside.
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kMembers = kOpen - 1;

  int size_;  // as many as could be started
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  std::atomic<uint32_t> wakes_{0};
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Share> shares_;
  std::vector<std::thread> threads_;
};

}  // namespace minibert
