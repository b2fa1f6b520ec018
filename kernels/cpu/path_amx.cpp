// path_amx.cpp: AVX-512, and AMX for the products: bfloat16 and int8 tiles.
#include "vec_avx512.h"

#include "path.h"
#include "words_avx.h"
#include "tiles_amx.h"
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
constexpr minibert::Kernels kPath = make_path("amx", kLinear, kAttentionTiles<1, 1>,
                                            kAttentionTiles<2, 3>);
}  // namespace

namespace minibert {
extern const Kernels* const amx_path = &kPath;
}
