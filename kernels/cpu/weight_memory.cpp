#include "weight_memory.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace minibert {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kBlock = size_t{32} << 20;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

std::shared_ptr<void> make_block(size_t bytes) {
  void* data = std::aligned_alloc(kLargePage, bytes);
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(data, bytes, MADV_HUGEPAGE);  // a wish: where it fails, pages are small
#endif
  return std::shared_ptr<void>(data, std::free);
}

// The block that is being filled. Held weakly: an engine that goes takes its blocks along.
std::mutex mutex;
std::weak_ptr<void> current;
size_t used = 0;

}  // namespace

WeightMemory::WeightMemory(size_t bytes) : bytes_(round_up(bytes, kAlignment)) {
  const std::lock_guard<std::mutex> lock(mutex);
  block_ = current.lock();
  if (block_ == nullptr || used + bytes_ > kBlock) {
    block_ = make_block(round_up(bytes_ > kBlock ? bytes_ : kBlock, kLargePage));
    current = block_;
    used = 0;
  }
  data_ = static_cast<char*>(block_.get()) + used;
  used += bytes_;
  // Layers are written to files up to here; what stood in this memory before must not go along.
  std::memset(static_cast<char*>(data_) + bytes, 0, bytes_ - bytes);
}

}  // namespace minibert
