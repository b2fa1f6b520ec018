// path_neon.cpp: aarch64: NEON is part of its base.
#include "vec_neon.h"

#include "path.h"

#include "dot_neon.h"
#include "products_int8.h"
#include "linear_int8.h"

namespace {
constexpr minibert::LinearKernel kLinear[] = {
    float_kernel<Float32Weight>("float32"),
    kBlockKernel,
    float_kernel<BFloat16Weight>("bfloat16"),
    float_kernel<Float16Weight>("float16"),
    kInt8Kernel,
    {},
};
constexpr minibert::Kernels kPath = make_path("neon", kLinear);
}  // namespace

namespace minibert {
extern const Kernels* const neon_path = &kPath;
}
