// path_portable.cpp: any processor with a C++17 compiler. Four lanes, as SSE2 has; a product is
// rounded before it is added.
#include "vec_software.h"

namespace {
using Vec = SoftwareVec<4, 4, 2, false>;
}

#include "path.h"
#include "dot_software.h"

namespace {
using Dot = SoftwareDot<4, 4>;
}

#include "products_int8.h"
#include "linear_int8.h"

namespace {
constexpr auto kLinear = linear_kernels(kInt8Kernel);
constexpr minibert::Kernels kPath = make_path("portable", kLinear.list);
}  // namespace

namespace minibert {
extern const Kernels* const portable_path = &kPath;
}
