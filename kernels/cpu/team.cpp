#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <chrono>
#include <system_error>

#include "float_environment.h"

namespace minibert {
namespace {

// Longer than a short text's tokenizer takes, shorter than what a waiting core would miss.
constexpr std::chrono::microseconds kSpin{500};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

Team::Team(int size)
    : size_(size < 1 ? 1 : size), shares_(static_cast<size_t>(size_)) {
  threads_.reserve(static_cast<size_t>(size_ - 1));
  for (int worker = 1; worker < size_; ++worker) {
    try {
      threads_.emplace_back([this, worker] { work(worker); });
    } catch (const std::system_error&) {  // the system gives no more: those there are do the work
      break;
    }
  }
  size_ = static_cast<int>(threads_.size()) + 1;
}

Team::~Team() {
  stop_.store(true);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

void Team::take_jobs(int worker) {
  for (int offset = 0; offset < size_; ++offset) {
    Share& share = shares_[static_cast<size_t>((worker + offset) % size_)];
    for (;;) {
      const int64_t i = share.next.fetch_add(1, std::memory_order_relaxed);
      if (i >= share.end) break;
      job_(context_, i, worker);
    }
  }
}

bool Team::same_share(int64_t num_jobs, int64_t i) const {
  for (int worker = 1; worker <= size_; ++worker)
    if (i + 1 == share_begin(num_jobs, worker)) return false;
  return true;
}

void Team::run(int64_t num_jobs, Job job, void* context) {
  if (size_ == 1 || num_jobs <= 1) {
    for (int64_t i = 0; i < num_jobs; ++i) job(context, i, 0);
    return;
  }
  job_ = job;
  context_ = context;
  for (int worker = 0; worker < size_; ++worker) {
    Share& share = shares_[static_cast<size_t>(worker)];
    share.next.store(share_begin(num_jobs, worker), std::memory_order_relaxed);
    share.end = share_begin(num_jobs, worker + 1);
  }
  // Publishes the fields above to whoever enters. Sequentially consistent together with sleeping_:
  // either this thread sees the sleeper, or the sleeper, which looks once more, sees the round.
  const uint64_t round = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(round << 32 | kOpen);
  if (sleeping_.load() > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  take_jobs(0);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  while ((state_.load(std::memory_order_acquire) & kMembers) != 0) pause();
}

void Team::wake() {
  if (sleeping_.load() == 0) return;
  wakes_.fetch_add(1);
  std::lock_guard<std::mutex> lock(mutex_);
  wake_.notify_all();
}

void Team::work(int worker) {
  const FloatEnvironment environment;  // a thread begins with its maker's
  uint64_t done = 0;  // the round this thread last took part in
  auto enters = [&](uint64_t state) { return (state & kOpen) != 0 && state >> 32 != done; };
  while (!stop_.load(std::memory_order_relaxed)) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    uint64_t state = state_.load(std::memory_order_acquire);
    for (int spins = 0; !enters(state); ++spins) {
      pause();
      state = state_.load(std::memory_order_acquire);
      if ((spins & 63) == 63 && std::chrono::steady_clock::now() > deadline) break;
    }
    if (!enters(state)) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1);
      const uint32_t wakes = wakes_.load();
      wake_.wait(lock, [&] {
        return stop_.load() || wakes != wakes_.load() || enters(state_.load());
      });
      sleeping_.fetch_sub(1);
      continue;
    }
    if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
    done = state >> 32;
    take_jobs(worker);
    state_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace minibert
