// amx_trap.h: lets code with AMX instructions run on a processor without them.
#pragma once

namespace amx {

// From here on every AMX instruction of the process that the processor refuses is carried out by a
// handler of SIGILL. One that breaks a rule of the instruction set ends the program with exit code
// 97 and a line on standard error; any other illegal instruction ends it as always.
void install_trap();

// How many instructions the handler has carried out so far; 0 on a processor with AMX.
long trapped();

}  // namespace amx
