// path_neon_i8mm.cpp: path_neon.cpp with the matrix instruction usmmla for int8.
#include "vec_neon.h"

#include "path.h"
#include "mmla_neon.h"
#include "linear_pairs_int8.h"

namespace {
constexpr minibert::LinearKernel kLinear[] = {
    float_kernel<Float32Weight>("float32"),
    kBlockKernel,
    float_kernel<BFloat16Weight>("bfloat16"),
    float_kernel<Float16Weight>("float16"),
    kInt8PairsKernel,
    {},
};
constexpr minibert::Kernels kPath = make_path("neon-i8mm", kLinear);
}  // namespace

namespace minibert {
extern const Kernels* const neon_i8mm_path = &kPath;
}
