// path_neon_bf16_software.cpp: path_neon_bf16.cpp with its instructions as loops.
// Compiled for AVX2: an array of lanes is still an array of lanes, only computed faster.
#include "vec_software.h"

namespace {
using Vec = SoftwareVec<4, 6, 4, true>;
}

#include "path.h"
#include "mmla_software.h"
#include "linear_pairs.h"
#include "linear_pairs_int8.h"

namespace {
constexpr auto kLinear =
    linear_kernels(pairs_kernel<1>("bfloat16x1"), pairs_kernel<2>("bfloat16x3"), kInt8PairsKernel);
constexpr minibert::Kernels kPath = make_path("neon-bf16-software", kLinear.list);
}  // namespace

namespace minibert {
extern const Kernels* const neon_bf16_software_path = &kPath;
}
