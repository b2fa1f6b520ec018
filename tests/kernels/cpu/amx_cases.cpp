// amx_cases.cpp: single AMX instructions with operands from outside, for tests of what carries them
// out: amx_trap.h, or a processor with AMX.
//
//   amx_cases multiply OPERATION    in: configuration (64 bytes), tiles 0, 1, 2 (1024 bytes each)
//                                   out: tile 0 in 16 rows of 64 bytes, then what sttilecfg stores
//   amx_cases address               in: 65536 bytes; out: 1024 bytes for each of the loads below
//   amx_cases CASE                  a misuse; must not return
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "amx_trap.h"

namespace {

constexpr int64_t kTileBytes = 1024, kStride = 64;
constexpr uint8_t kUntouched = 0xaa;

struct alignas(64) Config {
  uint8_t bytes[64];
};

// Whole tiles, at an address that the assembler makes relative to the instruction pointer.
__asm__(
    ".section .rodata\n.balign 64\nwhole_tiles: .byte 1, 0\n.zero 14\n"
    ".rept 8\n.short 64\n.endr\n.zero 16\n.rept 8\n.byte 16\n.endr\n.zero 8\n.text\n");
void configure_whole_tiles() { __asm__ volatile("ldtilecfg whole_tiles(%rip)"); }

void read(void* data, size_t bytes) {
  if (std::fread(data, 1, bytes, stdin) != bytes) std::exit(2);
}
void write(const void* data, size_t bytes) { std::fwrite(data, 1, bytes, stdout); }

int multiply(const std::string& operation) {
  alignas(64) static Config config, stored;
  alignas(64) static uint8_t tiles[3][kTileBytes], out[kTileBytes];
  read(&config, sizeof config);
  read(tiles, sizeof tiles);
  std::memset(out, kUntouched, sizeof out);
  // The products' modes are fixed, whatever these are.
  const unsigned modes = 0x1f80 | _MM_ROUND_TOWARD_ZERO;
  _mm_setcsr(modes);
  // GCC's intrinsics say that eight bytes of the configuration are read, and nothing of the tiles.
  __asm__ volatile("" ::"r"(&config), "r"(tiles) : "memory");
  _tile_loadconfig(&config);
  _tile_loadd(0, tiles[0], kStride);
  _tile_loadd(1, tiles[1], kStride);
  _tile_loadd(2, tiles[2], kStride);
  if (operation == "bf16ps") _tile_dpbf16ps(0, 1, 2);
  else if (operation == "bssd") _tile_dpbssd(0, 1, 2);
  else if (operation == "bsud") _tile_dpbsud(0, 1, 2);
  else if (operation == "busd") _tile_dpbusd(0, 1, 2);
  else if (operation == "buud") _tile_dpbuud(0, 1, 2);
  else if (operation == "zero") _tile_zero(0);
  // tdpbusd %tmm1, %tmm1, %tmm0, which the assembler refuses
  else if (operation == "same") __asm__ volatile(".byte 0xc4, 0xe2, 0x71, 0x5e, 0xc1");
  else if (operation == "released") _tile_release();
  else if (operation != "nothing") return 2;
  if (operation != "released") _tile_stored(0, out, kStride);
  __asm__ volatile("sttilecfg %0" : "=m"(stored));
  if (_mm_getcsr() != modes) return 3;
  write(out, sizeof out);
  write(&stored, sizeof stored);
  return 0;
}

// One way of addressing: both registers are named, so that every part of the encoding occurs.
#define THROUGH(instruction, base_register, index_register, base, index) \
  {                                                                      \
    register const void* b __asm__(base_register) = (base);              \
    register int64_t i __asm__(index_register) = (index);                \
    __asm__ volatile(instruction ::"r"(b), "r"(i) : "memory");           \
  }
#define LOAD(address, base_register, index_register, base, index)                               \
  THROUGH("tileloadd " address ", %%tmm5", base_register, index_register, base, index)          \
  THROUGH("tilestored %%tmm5, (%0,%1,1)", "r11", "r14", out, kStride)                           \
  write(out, sizeof out);

int address() {
  void* const low = (void*)0x10000000;  // fits a displacement
  constexpr size_t kBytes = 65536;
  if (mmap(low, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
           -1, 0) != low) {
    return 2;
  }
  read(low, kBytes);
  const char* p = (const char*)low + 8192;
  alignas(64) static uint8_t out[kTileBytes], stored[kStride];
  configure_whole_tiles();
  // The offset of the first row and the distance of the rows are ADDRESSES in test_amx_trapped.py.
  LOAD("(%0,%1,1)", "rax", "rcx", p, 64)
  LOAD("(%0,%1,2)", "rdx", "rbx", p, 36)
  LOAD("(%0,%1,4)", "rsi", "r15", p, 25)
  LOAD("(%0,%1,8)", "r15", "rdi", p, 16)
  LOAD("(%0,%1,1)", "r12", "r13", p, 64)  // 12 and 13: what 4 and 5 would not mean
  LOAD("(%0,%1,1)", "r13", "r12", p, 64)
  LOAD("112(%0,%1,1)", "r8", "r9", p, 64)
  LOAD("-128(%0,%1,1)", "r9", "r8", p, 64)
  LOAD("0x1234(%0,%1,1)", "rbx", "r10", p, 64)
  LOAD("-0x1234(%0,%1,1)", "r10", "rax", p, 64)
  LOAD("(%0,%1,1)", "rcx", "rdx", p, -80)
  LOAD("0x10002000(,%1,2)", "rdi", "r11", p, 64)  // no base
  LOAD("(%0)", "rax", "rcx", p, 64)               // no index: no distance
  THROUGH("sttilecfg -8(%0,%1,4)", "r13", "r14", stored, 2)
  write(stored, sizeof stored);
  return 0;
}

int misuse(const std::string& name) {
  if (name == "unconfigured") {
    _tile_zero(0);
  } else if (name == "other_thread") {
    configure_whole_tiles();
    std::thread([] { _tile_zero(0); }).join();
  } else if (name == "not_amx") {
    __asm__ volatile("ud2");
  } else if (name == "almost_amx") {
    __asm__ volatile(".byte 0xc4, 0xe2, 0xf8, 0x49, 0xc0");  // tilerelease, but for W
  }
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  // A processor with tiles: Linux gives them on request, see kernels/cpu/cpu_features.cpp.
  syscall(SYS_arch_prctl, 0x1023, 18);
  amx::install_trap();
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "multiply" && argc == 3) return multiply(argv[2]);
  if (name == "address") return address();
  return misuse(name);
}
