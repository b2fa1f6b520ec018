#include "amx_trap.h"

#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

#include <atomic>

#include "amx_decode.h"
#include "amx_tiles.h"

namespace amx {
namespace {

// Zeros, as a thread's tiles are at first. Reserved when the thread starts: a handler must not
// allocate.
[[gnu::tls_model("initial-exec")]] thread_local Tiles tiles;
std::atomic<long> count{0};

void say_bytes(const uint8_t* code) {
  constexpr uintptr_t kPage = 4096;
  constexpr char kDigits[] = "0123456789abcdef";
  say("amx_trap: not an AMX instruction:");
  // The next page may not be there.
  for (int i = 0; i < 8 && (i == 0 || (uintptr_t)(code + i) % kPage != 0); ++i) {
    const char text[] = {' ', kDigits[code[i] >> 4], kDigits[code[i] & 15], '\0'};
    say(text);
  }
  say("\n");
}

void handle(int, siginfo_t*, void* context) {
  use_fixed_modes();
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* code = (const uint8_t*)registers[REG_RIP];
  Instruction instruction;
  if (!decode(code, registers, instruction)) {
    say_bytes(code);
    signal(SIGILL, SIG_DFL);  // the instruction runs again, and ends the program
    return;
  }
  tiles.execute(instruction);
  count.fetch_add(1, std::memory_order_relaxed);
  registers[REG_RIP] += instruction.length;
}

}  // namespace

void install_trap() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

long trapped() { return count.load(); }

}  // namespace amx
