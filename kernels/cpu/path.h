// path.h: everything a path compiles, and its table. Included last by each path_*.cpp, after its
// vector header.
#pragma once

#include "attention.h"
#include "layer_norm.h"
#include "linear_block.h"
#include "linear_float.h"

namespace {

constexpr minibert::Kernels make_path(const char* name, const minibert::LinearKernel* linear) {
  return {name,           linear,         layer_norm_rows,    embed_rows, attention_scratch_bytes,
          attention_head, activate_values, exponential_values};
}

}  // namespace
