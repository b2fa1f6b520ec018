// path_neon_i8mm.cpp: path_neon.cpp with the matrix instruction usmmla for int8.
#include "vec_neon.h"

#include "path.h"
#include "mmla_neon.h"
#include "linear_pairs_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8PairsKernel);
constexpr minibert::Kernels kPath = make_path("neon-i8mm", kLinear.list);
}  // namespace

namespace minibert {
extern const Kernels* const neon_i8mm_path = &kPath;
}
