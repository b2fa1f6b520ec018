#include "background.h"

#include "float_environment.h"

#include <string.h>

#include <system_error>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace minibert {
namespace {

// NaN and infinity are those whose exponent is all ones: one more, and it reaches the sign's bit.
bool all_finite(const float* values, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    found |= (bits & 0x7f800000u) + 0x00800000u;
  }
  return (found & 0x80000000u) == 0;
}

}  // namespace

void Background::add(std::function<void()> job) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!closed_ && !thread_.joinable()) {
      try {
        thread_ = std::thread([this] { work(); });
      } catch (const std::system_error&) {  // no thread to be had: the caller does it
        closed_ = true;
      }
    }
    if (!closed_) {
      jobs_.push_back(std::move(job));
      changed_.notify_all();
      return;
    }
  }
  job();
}

void Background::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return jobs_.empty() && !busy_; });
}

void Background::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    jobs_.clear();
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void Background::work() {
  const FloatEnvironment environment;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closed_ || !jobs_.empty(); });
    if (closed_) return;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    job();
    job = nullptr;  // what it held goes before anyone is told
    lock.lock();
    busy_ = false;
    if (jobs_.empty()) changed_.notify_all();
  }
}

void Background::check_finite(const float* values, int64_t count) {
  add([=] { finite_ = all_finite(values, count) && finite_; });
}

void Background::copy(void* out, const void* in, size_t bytes) {
  add([=] { memcpy(out, in, bytes); });
}

void Background::release(void* begin, size_t bytes) {
#if defined(MADV_DONTNEED)
  add([=] { madvise(begin, bytes, MADV_DONTNEED); });
#else
  (void)begin, (void)bytes;
#endif
}

}  // namespace minibert
