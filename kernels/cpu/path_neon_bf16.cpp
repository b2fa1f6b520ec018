// path_neon_bf16.cpp: path_neon.cpp with the matrix instructions: usmmla for int8, bfmmla for
// bfloat16. float32 of the highest precision stays with multiply-adds.
#include "vec_neon.h"

#include "path.h"
#include "mmla_neon.h"
#include "linear_pairs.h"
#include "linear_pairs_int8.h"

namespace {
constexpr auto kLinear =
    linear_kernels(pairs_kernel<1>("bfloat16x1"), pairs_kernel<2>("bfloat16x3"), kInt8PairsKernel);
constexpr minibert::Kernels kPath = make_path("neon-bf16", kLinear.list);
}  // namespace

namespace minibert {
extern const Kernels* const neon_bf16_path = &kPath;
}
