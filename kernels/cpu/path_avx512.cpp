// path_avx512.cpp: x86-64 with AVX-512 F, BW, VL and DQ.
#include "vec_avx512.h"

#include "path.h"
#include "words_avx.h"
#include "attention_int16.h"
#include "dot_avx512.h"
#include "products_int8_chunks.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("avx512", kLinear.list, kAttentionInt16);
}  // namespace

namespace minibert {
extern const Kernels* const avx512_path = &kPath;
}
