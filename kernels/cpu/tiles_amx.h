// tiles_amx.h: the matrix registers of AMX, as the struct `Tiles` that linear_tiles.h is written
// against. tiles_software.h offers the same names.
//
// A tile is 16 rows of 64 bytes. Tiles 0-3 hold 2 x 2 blocks of sums, 4-5 two blocks of
// activations, 6-7 two of weights: four products for four loads, so that no product waits for the
// one before it.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "tiles_vectors.h"

namespace {

struct Tiles : TileVectors {
  static constexpr int64_t kTileBytes = 1024;

  // The shape of all eight tiles, for this thread. Released after each job: live tiles add 8 KB to
  // every context switch.
  static void configure() {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    static_assert(sizeof shape == 64, "the format of ldtilecfg");
    // GCC's intrinsic says that 8 of the 64 bytes are read; the stores of the others must stay.
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  static void release() { _tile_release(); }
  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // Two tiles that lie one after the other. The barrier: GCC's tile loads do not say that they
  // read memory.
  static void load_rows(const void* p) {
    __asm__ volatile("" ::: "memory");
    _tile_loadd(4, p, 64);
    _tile_loadd(5, (const char*)p + kTileBytes, 64);
  }
  static void load_cols(const void* p) {
    __asm__ volatile("" ::: "memory");
    _tile_loadd(6, p, 64);
    _tile_loadd(7, (const char*)p + kTileBytes, 64);
  }
  static void multiply_bfloat16() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  static void multiply_int8() {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  // The sums, (32, 32) values of 4 bytes; `stride`: bytes from row to row.
  static void store(void* out, int64_t stride) {
    char* p = (char*)out;
    _tile_stored(0, p, stride);
    _tile_stored(1, p + 64, stride);
    _tile_stored(2, p + 16 * stride, stride);
    _tile_stored(3, p + 16 * stride + 64, stride);
  }
};

}  // namespace
