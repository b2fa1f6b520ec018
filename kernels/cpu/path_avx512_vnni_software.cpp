// path_avx512_vnni_software.cpp: path_avx512_vnni.cpp with its instructions as loops.
// Compiled for AVX2: an array of lanes is still an array of lanes, only computed faster.
#include "vec_software.h"

namespace {
using Vec = SoftwareVec<16, 12, 2, true>;
}

#include "path.h"
#include "words_software.h"
#include "attention_int16.h"
#include "dot_software.h"

namespace {
using Dot = SoftwareDot<16, 12>;
}

#include "products_int8.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("avx512-vnni-software", kLinear.list, kAttentionInt16);
}  // namespace

namespace minibert {
extern const Kernels* const avx512_vnni_software_path = &kPath;
}
