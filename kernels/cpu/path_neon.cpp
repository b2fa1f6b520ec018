// path_neon.cpp: aarch64: NEON is part of its base.
#include "vec_neon.h"

#include "path.h"

#include "dot_neon.h"
#include "products_int8.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("neon", kLinear.list);
}  // namespace

namespace minibert {
extern const Kernels* const neon_path = &kPath;
}
