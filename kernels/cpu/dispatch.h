// dispatch.h: which paths this binary holds and which of them this processor can run.
#pragma once

#include "kernels.h"

namespace minibert {

struct Path {
  const Kernels* kernels;
  bool supported;      // by the processor and the operating system
  const char* needs;   // what it takes, for messages
};

// All paths of this binary, the fastest first; the count goes to `count`.
const Path* all_paths(int* count);

// A path that the compiler could not build: its pointer in dispatch.cpp is null. setup.py writes the
// table, which ends with a null name.
struct LeftOut {
  const char* name;
  const char* reason;
};
extern const LeftOut left_out[];

}  // namespace minibert
