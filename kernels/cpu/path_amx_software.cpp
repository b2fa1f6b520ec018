// path_amx_software.cpp: path_amx.cpp with its instructions as loops.
// Compiled for AVX2: an array of lanes is still an array of lanes, only computed faster.
#include "vec_software.h"

namespace {
using Vec = SoftwareVec<16, 12, 2, true>;
}

#include "path.h"
#include "words_software.h"
#include "tiles_software.h"
#include "linear_tiles.h"
#include "linear_tiles_int8.h"
#include "attention_tiles.h"

namespace {
constexpr minibert::LinearKernel kLinear[] = {
    float_kernel<Float32Weight>("float32"),
    float_kernel<BFloat16Weight>("bfloat16"),
    float_kernel<Float16Weight>("float16"),
    tiles_kernel<1, 1>("bfloat16x1"),
    tiles_kernel<2, 3>("bfloat16x3"),
    tiles_kernel<3, 6>("bfloat16x6"),
    kInt8TilesKernel,
    {},
};
constexpr minibert::Kernels kPath = make_path("amx-software", kLinear, kAttentionTiles<1, 1>,
                                            kAttentionTiles<2, 3>);
}  // namespace

namespace minibert {
extern const Kernels* const amx_software_path = &kPath;
}
