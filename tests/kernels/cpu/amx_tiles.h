// amx_tiles.h: what the AMX instructions do to the tile registers of one thread.
//
// Written after the operation sections and exception classes in volume 2 of Intel's Software
// Developer's Manual, for palette 1, and not after kernels/cpu/tiles_software.h: each checks the
// other. What raises an exception on a processor ends the program here, with a line that says why.
//
// float32 arithmetic is the processor's own, in the modes that TDPBF16PS always uses.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "amx_decode.h"

namespace amx {

constexpr int kFaultExit = 97;  // no other part of the test programs ends with it

inline void say(const char* text) {
  // write, not stdio: this runs in a signal handler. Nothing can be done where it fails.
  if (write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

[[noreturn]] inline void fault(const Instruction& instruction, const char* why) {
  say("amx_trap: ");
  say(instruction.form->name);
  say(": ");
  say(why);
  say("\n");
  _exit(kFaultExit);
}

// Nearest, ties to even; subnormal operands and results are 0; no exceptions. Set at the beginning
// of the handler, since a compiler may move arithmetic across it. The kernel gives the interrupted
// code its own modes back.
inline void use_fixed_modes() {
  constexpr unsigned kNoExceptions = 0x1f80, kFlushResults = 0x8000, kFlushOperands = 0x40;
  _mm_setcsr(kNoExceptions | kFlushResults | kFlushOperands);
}

class Tiles {
 public:
  void execute(const Instruction& in);

 private:
  static constexpr unsigned kCount = 8, kRows = 16, kBytes = 64;
  struct Config {
    uint8_t palette, start_row, reserved_a[14];
    uint16_t row_bytes[kCount], reserved_b[8];
    uint8_t rows[kCount], reserved_c[8];
  };
  static_assert(sizeof(Config) == 64, "the format of ldtilecfg");

  void load_config(const Instruction& in);
  void load(const Instruction& in);
  void store(const Instruction& in);
  void check(const Instruction& in, unsigned tile) const;
  void check_start(const Instruction& in) const;
  void check_product(const Instruction& in) const;
  template <typename Left, typename Right>
  void multiply_integers(unsigned out, unsigned left, unsigned right);
  void multiply_bfloat16(unsigned out, unsigned left, unsigned right);

  void release() { memset(this, 0, sizeof *this); }
  void clear_rows(unsigned tile, unsigned begin) {
    memset(data_[tile][begin], 0, (kRows - begin) * kBytes);
  }
  // A row's first bytes, and zeros behind them.
  void write_row(unsigned tile, unsigned row, const void* bytes) {
    memset(data_[tile][row], 0, kBytes);
    memcpy(data_[tile][row], bytes, config_.row_bytes[tile]);
  }

  Config config_;  // palette 0: not configured
  alignas(64) uint8_t data_[kCount][kRows][kBytes];
};

inline void Tiles::load_config(const Instruction& in) {
  Config wanted;
  memcpy(&wanted, (const void*)in.address, sizeof wanted);
  if (wanted.palette == 0) return release();
  if (wanted.palette != 1) fault(in, "#GP: the palette must be 0 or 1");
  const Config zeros = {};
  if (memcmp(wanted.reserved_a, zeros.reserved_a, sizeof zeros.reserved_a) != 0 ||
      memcmp(wanted.reserved_b, zeros.reserved_b, sizeof zeros.reserved_b) != 0 ||
      memcmp(wanted.reserved_c, zeros.reserved_c, sizeof zeros.reserved_c) != 0) {
    fault(in, "#GP: reserved bytes must be zero");
  }
  for (unsigned tile = 0; tile < kCount; ++tile) {
    const unsigned rows = wanted.rows[tile], bytes = wanted.row_bytes[tile];
    if (rows > kRows) fault(in, "#GP: a tile has at most 16 rows");
    if (bytes > kBytes) fault(in, "#GP: a row has at most 64 bytes");
    if ((rows == 0) != (bytes == 0)) fault(in, "#GP: rows and bytes must both be 0, or neither");
  }
  release();
  config_ = wanted;
}

inline void Tiles::check(const Instruction& in, unsigned tile) const {
  if (config_.palette == 0) fault(in, "#UD: the tiles are not configured");
  if (tile >= kCount || config_.rows[tile] == 0) fault(in, "#UD: no such tile is configured");
  if (config_.row_bytes[tile] % 4 != 0) fault(in, "#UD: a row must be a multiple of 4 bytes");
}

inline void Tiles::check_start(const Instruction& in) const {
  if (config_.start_row >= config_.rows[in.reg]) fault(in, "#UD: start_row is behind the tile");
}

inline void Tiles::check_product(const Instruction& in) const {
  const unsigned out = in.reg, left = in.rm, right = in.vvvv;
  check(in, out);
  check(in, left);
  check(in, right);
  if (out == left || left == right || out == right) fault(in, "#UD: its tiles must differ");
  if (config_.rows[out] != config_.rows[left] ||
      config_.row_bytes[out] != config_.row_bytes[right] ||
      config_.row_bytes[left] / 4 != config_.rows[right]) {
    fault(in, "#UD: the shapes of its tiles do not fit");
  }
}

// start_row is where an interrupted load or store goes on: rows above it stay.
inline void Tiles::load(const Instruction& in) {
  clear_rows(in.reg, config_.start_row);
  for (unsigned row = config_.start_row; row < config_.rows[in.reg]; ++row) {
    write_row(in.reg, row, (const void*)(in.address + row * in.stride));
  }
}

inline void Tiles::store(const Instruction& in) {
  for (unsigned row = config_.start_row; row < config_.rows[in.reg]; ++row) {
    memcpy((void*)(in.address + row * in.stride), data_[in.reg][row], config_.row_bytes[in.reg]);
  }
}

// Sums wrap around; 4 products of bytes to an int32.
template <typename Left, typename Right>
void Tiles::multiply_integers(unsigned out, unsigned left, unsigned right) {
  for (unsigned m = 0; m < config_.rows[out]; ++m) {
    uint32_t sums[16];
    memcpy(sums, data_[out][m], sizeof sums);
    for (unsigned n = 0; n < config_.row_bytes[out] / 4u; ++n) {
      for (unsigned k = 0; k < config_.row_bytes[left]; ++k) {
        sums[n] += (uint32_t)((int32_t)(Left)data_[left][m][k] *
                              (int32_t)(Right)data_[right][k / 4][4 * n + k % 4]);
      }
    }
    write_row(out, m, sums);
  }
}

// Sums of the products of even and of odd inputs, each step one fused multiply-add; their sum is
// added to the tile. In the modes of use_fixed_modes().
inline void Tiles::multiply_bfloat16(unsigned out, unsigned left, unsigned right) {
  const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
  for (unsigned m = 0; m < config_.rows[out]; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (unsigned k = 0; k < config_.row_bytes[left] / 4u; ++k) {
      int pair;
      memcpy(&pair, data_[left][m] + 4 * k, sizeof pair);
      const __m512i first = _mm512_set1_epi32(pair), second = _mm512_load_si512(data_[right][k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(first, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(first, upper)),
                            _mm512_castsi512_ps(_mm512_and_si512(second, upper)), odd);
    }
    alignas(64) float sums[16];
    _mm512_store_ps(sums, _mm512_add_ps(_mm512_load_ps((const float*)data_[out][m]),
                                        _mm512_add_ps(even, odd)));
    write_row(out, m, sums);
  }
}

inline void Tiles::execute(const Instruction& in) {
  const unsigned out = in.reg, left = in.rm, right = in.vvvv;
  switch (in.form->operands) {
    case kOneTile: check(in, out); break;
    case kTileAndRows: check(in, out), check_start(in); break;
    case kThreeTiles: check_product(in); break;
    default: break;
  }
  switch (in.form->operation) {
    case kLoadConfig: return load_config(in);
    case kStoreConfig: memcpy((void*)in.address, &config_, sizeof config_); return;
    case kRelease: return release();
    case kZero: clear_rows(out, 0); break;
    case kLoad: load(in); break;
    case kStore: store(in); break;
    case kBFloat16: multiply_bfloat16(out, left, right); break;
    case kSignedSigned: multiply_integers<int8_t, int8_t>(out, left, right); break;
    case kSignedUnsigned: multiply_integers<int8_t, uint8_t>(out, left, right); break;
    case kUnsignedSigned: multiply_integers<uint8_t, int8_t>(out, left, right); break;
    case kUnsignedUnsigned: multiply_integers<uint8_t, uint8_t>(out, left, right); break;
  }
  if (in.form->operands == kThreeTiles) clear_rows(out, config_.rows[out]);
  config_.start_row = 0;
}

}  // namespace amx
