// path_avx512_vnni.cpp: path_avx512.cpp with AVX512-VNNI for int8.
#include "vec_avx512.h"

#include "path.h"
#include "words_avx.h"
#include "attention_int16.h"
#include "dot_vnni.h"
#include "products_int8.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("avx512-vnni", kLinear.list, kAttentionInt16);
}  // namespace

namespace minibert {
extern const Kernels* const avx512_vnni_path = &kPath;
}
