// path.h: everything a path compiles, and its table. Included last by each path_*.cpp, after its
// vector header.
#pragma once

#include "attention.h"
#include "layer_norm.h"
#include "linear_block.h"
#include "linear_float.h"

namespace {

template <size_t kCount>
struct LinearKernels {
  minibert::LinearKernel list[kCount];  // ends with an entry whose format is null
};

// What all paths but AMX have for float weights, and a path's own.
template <class... Own>
constexpr LinearKernels<5 + sizeof...(Own)> linear_kernels(Own... own) {
  return {{float_kernel<Float32Weight>("float32"),
           kBlockKernel,
           float_kernel<BFloat16Weight>("bfloat16"),
           float_kernel<Float16Weight>("float16"),
           own...,
           {}}};
}

constexpr minibert::Kernels make_path(const char* name, const minibert::LinearKernel* linear,
                                      minibert::AttentionKernel narrow = {},
                                      minibert::AttentionKernel split = {}) {
  return {name,
          linear,
          layer_norm_rows,
          embed_rows,
          {{attention_scratch_bytes, attention_head}, split, narrow},
          activate_values,
          exponential_values};
}

}  // namespace
