#include "dispatch.h"

#include "features.h"

namespace minibert {

extern const Kernels* const portable_path;
#if defined(__x86_64__)
extern const Kernels* const avx2_path;
#endif

const Path* all_paths(int* count) {
  static const Features f = detect_features();
  static const Path paths[] = {
#if defined(__x86_64__)
      {avx2_path, f.avx2, "AVX2, FMA, F16C"},
#endif
      {portable_path, true, "nothing"},
  };
  *count = static_cast<int>(sizeof paths / sizeof paths[0]);
  return paths;
}

}  // namespace minibert
