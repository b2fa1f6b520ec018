// background.h: one thread that works on weights beside the caller's, in the order it was told.
//
// At load the caller is busy with what holds Python's lock (above all: the tokenizer's file is
// parsed); checking and laying out weights needs no Python and goes on meanwhile.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace minibert {

class Background {
 public:
  Background() = default;
  ~Background() { close(); }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // The job must not throw, and what it reads must stay until `wait` or `close`. The thread starts
  // with the first one; where none can be started, and after `close`, jobs are done at once.
  void add(std::function<void()> job);
  // Until all jobs are done.
  void wait();
  // Drops the jobs that have not begun, and ends the thread.
  void close();

  // Jobs.
  void check_finite(const float* values, int64_t count);
  void copy(void* out, const void* in, size_t bytes);
  void release(void* begin, size_t bytes);  // whole pages of a mapped file, which are not needed

  // Whether all values that were checked were numbers. After `wait`.
  bool finite() const { return finite_; }

 private:
  void work();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  std::thread thread_;
  bool busy_ = false;
  bool closed_ = false;
  bool finite_ = true;  // written by jobs
};

}  // namespace minibert
