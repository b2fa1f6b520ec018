// amx_decode.h: which AMX instruction lies at an address, and what its operands are.
//
// After volume 2 of Intel's Software Developer's Manual: the instruction pages for opcodes and
// operands, chapter 2 for the three-byte VEX prefix, ModRM, SIB and displacements.
//
//   C4   not R, not X, not B, map (5 bits)   W, not vvvv (4 bits), L, pp (2 bits)   opcode
//   ModRM   [SIB]   [displacement]
//
// All these instructions have map 2 (0F38), W = 0 and L = 0; pp stands for none, 66, F3 or F2.
#pragma once

#include <stdint.h>
#include <string.h>
#include <sys/ucontext.h>

namespace amx {

enum Prefix : uint8_t { kNone, k66, kF3, kF2 };

enum Operands : uint8_t {
  kNoOperands,   // ModRM is C0
  kOneTile,      // mod = 3, rm = 0: the tile is reg
  kMemory,       // any memory operand, reg = 0
  kTileAndRows,  // the tile is reg; rows of memory, the index register holds their distance
  kThreeTiles,   // reg += rm * vvvv
};

enum Operation : uint8_t {
  kLoadConfig, kStoreConfig, kRelease, kZero, kLoad, kStore,
  kBFloat16, kSignedSigned, kSignedUnsigned, kUnsignedSigned, kUnsignedUnsigned,
};

struct Form {
  uint8_t opcode;
  Prefix prefix;
  Operands operands;
  Operation operation;
  const char* name;
};

constexpr Form kForms[] = {
    {0x49, kNone, kMemory, kLoadConfig, "ldtilecfg"},
    {0x49, k66, kMemory, kStoreConfig, "sttilecfg"},
    {0x49, kNone, kNoOperands, kRelease, "tilerelease"},
    {0x49, kF2, kOneTile, kZero, "tilezero"},
    {0x4b, kF2, kTileAndRows, kLoad, "tileloadd"},
    {0x4b, k66, kTileAndRows, kLoad, "tileloaddt1"},
    {0x4b, kF3, kTileAndRows, kStore, "tilestored"},
    {0x5c, kF3, kThreeTiles, kBFloat16, "tdpbf16ps"},
    {0x5e, kF2, kThreeTiles, kSignedSigned, "tdpbssd"},
    {0x5e, kF3, kThreeTiles, kSignedUnsigned, "tdpbsud"},
    {0x5e, k66, kThreeTiles, kUnsignedSigned, "tdpbusd"},
    {0x5e, kNone, kThreeTiles, kUnsignedUnsigned, "tdpbuud"},
};

struct Instruction {
  const Form* form;
  int length;              // bytes
  unsigned reg, rm, vvvv;  // tiles; 8 to 15 can be encoded and are no tiles
  uint64_t address;        // of the memory operand, or of its first row
  uint64_t stride;         // bytes from row to row
};

inline uint64_t general_register(const greg_t* saved, unsigned number) {
  constexpr int kPlaces[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                               REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                               REG_R12, REG_R13, REG_R14, REG_R15};
  return (uint64_t)saved[kPlaces[number]];
}

inline bool takes(Operands operands, unsigned mod, unsigned reg, unsigned rm) {
  switch (operands) {
    case kNoOperands: return mod == 3 && reg == 0 && rm == 0;
    case kOneTile: return mod == 3 && rm == 0;
    case kMemory: return mod != 3 && reg == 0;
    case kTileAndRows: return mod != 3 && (rm & 7) == 4;  // without SIB it is not an instruction
    case kThreeTiles: return mod == 3;
  }
  return false;
}

// False: the bytes are no AMX instruction of the table. Reads no byte behind the instruction.
inline bool decode(const uint8_t* code, const greg_t* saved, Instruction& out) {
  const uint8_t* next = code;
  if (*next++ != 0xc4) return false;
  const uint8_t first = *next++;
  if ((first & 31) != 2) return false;
  const uint8_t second = *next++;
  if ((second & 0x84) != 0) return false;  // W, L
  const unsigned r = ~first >> 7 & 1, x = ~first >> 6 & 1, b = ~first >> 5 & 1;
  const uint8_t opcode = *next++;
  if (opcode != 0x49 && opcode != 0x4b && opcode != 0x5c && opcode != 0x5e) return false;
  const uint8_t modrm = *next++;
  const unsigned mod = modrm >> 6;
  out = {};
  out.vvvv = ~second >> 3 & 15;
  out.reg = r << 3 | (modrm >> 3 & 7);
  out.rm = b << 3 | (modrm & 7);
  for (const Form& form : kForms) {
    if (form.opcode == opcode && form.prefix == (second & 3) &&
        takes(form.operands, mod, out.reg, out.rm)) {
      out.form = &form;
    }
  }
  if (out.form == nullptr) return false;
  if (out.form->operands != kThreeTiles && out.vvvv != 0) return false;

  if (mod != 3) {
    bool relative = false, four_bytes = mod == 2;
    uint64_t index = 0;
    if ((modrm & 7) == 4) {
      const uint8_t sib = *next++;
      const unsigned index_register = x << 3 | (sib >> 3 & 7);
      if (index_register != 4) index = general_register(saved, index_register) << (sib >> 6);
      if (mod == 0 && (sib & 7) == 5) {
        four_bytes = true;  // a displacement in place of the base
      } else {
        out.address = general_register(saved, b << 3 | (sib & 7));
      }
    } else if (mod == 0 && (modrm & 7) == 5) {
      relative = four_bytes = true;
    } else {
      out.address = general_register(saved, out.rm);
    }
    if (four_bytes) {
      int32_t displacement;
      memcpy(&displacement, next, sizeof displacement);
      next += sizeof displacement;
      out.address += (uint64_t)(int64_t)displacement;
    } else if (mod == 1) {
      out.address += (uint64_t)(int64_t)(int8_t)*next++;
    }
    if (relative) out.address += (uint64_t)next;
    if (out.form->operands == kTileAndRows) {
      out.stride = index;
    } else {
      out.address += index;
    }
  }
  out.length = (int)(next - code);
  return true;
}

}  // namespace amx
