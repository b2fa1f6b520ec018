// path_neon_dotprod.cpp: path_neon.cpp with sdot for int8.
#include "vec_neon.h"

#include "path.h"

#include "dot_neon.h"
#include "products_int8.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("neon-dotprod", kLinear.list);
}  // namespace

namespace minibert {
extern const Kernels* const neon_dotprod_path = &kPath;
}
