#include "dispatch.h"

#include <vector>

#include "cpu_features.h"

namespace minibert {

extern const Kernels* const portable_path;
#if defined(__x86_64__)
extern const Kernels* const avx2_path;
extern const Kernels* const avx2_vnni_path;
extern const Kernels* const avx512_path;
extern const Kernels* const avx512_vnni_path;
extern const Kernels* const amx_path;
extern const Kernels* const avx2_vnni_software_path;
extern const Kernels* const avx512_vnni_software_path;
extern const Kernels* const amx_software_path;
extern const Kernels* const neon_bf16_software_path;
#elif defined(__aarch64__)
extern const Kernels* const neon_path;
extern const Kernels* const neon_dotprod_path;
extern const Kernels* const neon_i8mm_path;
extern const Kernels* const neon_bf16_path;
#endif

namespace {

std::vector<Path> find_paths() {
  const Features f = detect_features();
  const Path all[] = {
#if defined(__x86_64__)
      {amx_path, f.amx,
       "AVX-512 VNNI and BF16, AMX tiles for int8 and bfloat16, and the system's permission"},
      {avx512_vnni_path, f.avx512_vnni, "AVX-512 F, BW, VL, DQ, VNNI"},
      {avx512_path, f.avx512, "AVX-512 F, BW, VL, DQ"},
      {avx2_vnni_path, f.avx_vnni, "AVX2, FMA, F16C, AVX-VNNI"},
      {avx2_path, f.avx2, "AVX2, FMA, F16C"},
#elif defined(__aarch64__)
      {neon_bf16_path, f.neon_bf16, "NEON, i8mm, bf16"},
      {neon_i8mm_path, f.neon_i8mm, "NEON, i8mm"},
      {neon_dotprod_path, f.neon_dotprod, "NEON, dotprod"},
      {neon_path, true, "aarch64"},
#endif
      {portable_path, true, "nothing"},
#if defined(__x86_64__)
      {amx_software_path, f.avx2, "AVX2, FMA, F16C"},
      {avx512_vnni_software_path, f.avx2, "AVX2, FMA, F16C"},
      {avx2_vnni_software_path, f.avx2, "AVX2, FMA, F16C"},
      {neon_bf16_software_path, f.avx2, "AVX2, FMA, F16C"},
#endif
  };
  std::vector<Path> paths;
  for (const Path& path : all) {
    if (path.kernels != nullptr) paths.push_back(path);  // null: left out of this build
  }
  return paths;
}

}  // namespace

const Path* all_paths(int* count) {
  static const std::vector<Path> paths = find_paths();
  *count = static_cast<int>(paths.size());
  return paths.data();
}

}  // namespace minibert
