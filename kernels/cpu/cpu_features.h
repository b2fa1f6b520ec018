// cpu_features.h: what the processor and the operating system allow, asked of both and never derived
// from a model name: virtual machines mask either.
#pragma once

namespace minibert {

struct Features {
  bool avx2 = false;         // AVX2, FMA, F16C
  bool avx_vnni = false;     // + AVX-VNNI, 256 bits
  bool avx512 = false;       // F, BW, VL, DQ
  bool avx512_vnni = false;
  bool amx = false;          // tiles, int8, bf16, and the kernel's permission to use them
  bool neon_dotprod = false;
  bool neon_i8mm = false;
  bool neon_bf16 = false;    // with i8mm
};

Features detect_features();

}  // namespace minibert
