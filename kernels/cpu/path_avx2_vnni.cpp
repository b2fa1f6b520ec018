// path_avx2_vnni.cpp: path_avx2.cpp with AVX-VNNI for int8: client cores without AVX-512.
// Compiled with the flags of AVX2 and -mavxvnni.
#include "vec_avx2.h"

#include "path.h"
#include "words_avx.h"
#include "attention_int16.h"
#include "dot_vnni.h"
#include "products_int8.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("avx2-vnni", kLinear.list, kAttentionInt16);
}  // namespace

namespace minibert {
extern const Kernels* const avx2_vnni_path = &kPath;
}
