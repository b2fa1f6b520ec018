// path_avx2.cpp: x86-64 with AVX2, FMA and F16C. Compiled with -mavx2 -mfma -mf16c.
#include "vec_avx2.h"

#include "path.h"
#include "words_avx.h"
#include "attention_int16.h"
#include "dot_avx2.h"
#include "products_int8_chunks.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("avx2", kLinear.list, kAttentionInt16);
}  // namespace

namespace minibert {
extern const Kernels* const avx2_path = &kPath;
}
