// weight_memory.h: memory for packed weights, many layers to a block.
//
// A pass reads all weights in order. In pages of 4 KiB they need thousands of translations, more
// than a processor keeps; blocks are therefore aligned to 2 MiB and marked for large pages where
// the system has them (Linux, madvise). Large pages are also filled with zeros faster at load. Only
// pages that layers were put into become resident.
#pragma once

#include <stddef.h>

#include <memory>

namespace minibert {

class WeightMemory {
 public:
  WeightMemory() = default;
  // 64-byte aligned; throws std::bad_alloc. The block goes when the last of its layers goes.
  explicit WeightMemory(size_t bytes);
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<void> block_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace minibert
