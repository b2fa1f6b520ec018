#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace minibert {
namespace {

#if defined(__x86_64__)

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf out;
  if (__get_cpuid_max(leaf & 0x80000000u, nullptr) < leaf) return out;
  __cpuid_count(leaf, subleaf, out.eax, out.ebx, out.ecx, out.edx);
  return out;
}

bool bit(uint32_t word, int index) { return (word >> index & 1u) != 0; }

// Which register states the operating system saves at a context switch.
uint64_t saved_states() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux hands out tile registers on request, once per process; without it the first use of a tile
// is an illegal instruction. Threads and forks inherit the permission.
bool ask_for_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

#if defined(__aarch64__) && defined(__APPLE__)
bool system_has(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

}  // namespace

Features detect_features() {
  Features f;
#if defined(__x86_64__)
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  if (!bit(one.ecx, 27)) return f;  // OSXSAVE: xgetbv itself
  const uint64_t states = saved_states();
  constexpr uint64_t kAvx = 0x6, kAvx512 = 0xe6, kAmx = 0x60000;
  const bool avx = (states & kAvx) == kAvx;
  const bool avx512 = (states & kAvx512) == kAvx512;
  f.avx2 = avx && bit(one.ecx, 28) && bit(one.ecx, 12) && bit(one.ecx, 29) && bit(seven.ebx, 5);
  f.avx_vnni = f.avx2 && seven.eax >= 1 && bit(seven_one.eax, 4);
  f.avx512 = f.avx2 && avx512 && bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) &&
             bit(seven.ebx, 31);
  f.avx512_vnni = f.avx512 && bit(seven.ecx, 11);
  f.amx = f.avx512_vnni && (states & kAmx) == kAmx && bit(seven.edx, 24) && bit(seven.edx, 25) &&
          bit(seven.edx, 22) && bit(seven_one.eax, 5) && ask_for_tiles();
#elif defined(__aarch64__) && defined(__linux__)
  // Bits of the auxiliary vector, arch/arm64/include/uapi/asm/hwcap.h.
  f.neon_dotprod = (getauxval(AT_HWCAP) >> 20 & 1) != 0;
  f.neon_i8mm = f.neon_dotprod && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
  f.neon_bf16 = f.neon_i8mm && (getauxval(AT_HWCAP2) >> 14 & 1) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  f.neon_dotprod = system_has("hw.optional.arm.FEAT_DotProd");
  f.neon_i8mm = f.neon_dotprod && system_has("hw.optional.arm.FEAT_I8MM");
  f.neon_bf16 = f.neon_i8mm && system_has("hw.optional.arm.FEAT_BF16");
#endif
  return f;
}

}  // namespace minibert
