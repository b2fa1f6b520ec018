"""Modules and kernels of the emulator, called as CuPy's `RawModule` and `RawKernel` are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from minibert.errors import InputError
from minibert.kernels.emulator import (  # noqa: F401  the imports fill the table
    copies,
    op_atomic,
    op_bits,
    op_carry,
    op_compare,
    op_control,
    op_convert,
    op_float,
    op_half,
    op_integer,
    op_matrix,
    op_memory,
    op_move,
    op_print,
    op_tensor,
    op_warp,
)
from minibert.kernels.emulator.arguments import pack_arguments
from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.chunk import GONE, PARAMETER_BASE, Chunk, Wait
from minibert.kernels.emulator.counters import LaunchCounters, Recorder
from minibert.kernels.emulator.device_memory import ID_SHIFT, AddressSpace, Allocation, Owner
from minibert.kernels.emulator.limits import check_launch, compute_capability
from minibert.kernels.emulator.machine import Geometry, Group
from minibert.kernels.emulator.op_memory import access_bytes
from minibert.kernels.emulator.operands import Name
from minibert.kernels.emulator.parse import Instruction, parse
from minibert.kernels.emulator.program import Program, link
from minibert.kernels.emulator.registers import share_registers
from minibert.kernels.emulator.table import Operation, lookup
from minibert.kernels.emulator.tensor_runs import fuse_runs
from minibert.kernels.emulator.types import Array

__all__ = ["Kernel", "Module"]

Dim: TypeAlias = "int | Sequence[int]"
_CHUNK_THREADS = 4096  # registers of more threads no longer fit into a cache
_KEPT_SHAPES = 3  # launches of one kernel that stay bound
_FIRST_VARIABLE = 3  # allocation ids of module variables; 2 is the parameter block


class Module:
    """PTX of one compilation, ready to run.

    Attributes:
        last_counters: of the latest launch, if `counters` is on.
    """

    def __init__(
        self,
        ptx: str,
        *,
        arch: str = "sm_80",
        checks: bool = True,
        counters: bool = False,
        step_limit: int = 1_000_000,
    ) -> None:
        """Parse a module.

        Args:
            ptx: the text.
            arch: architecture whose instructions and limits hold.
            checks: find races, uninitialised reads and blocks that write one place. Bounds and
                alignment are always checked.
            counters: count instructions, sectors and wavefronts; about as slow again.
            step_limit: instructions of one path until a launch counts as endless.

        Raises:
            UnsupportedError: the text cannot be read.
            LaunchError: the architecture is not known.
        """
        self.arch = compute_capability(arch)
        self.checks, self.counters, self.step_limit = checks, counters, step_limit
        self.last_counters: LaunchCounters | None = None
        self.lock = threading.Lock()  # launches of a module take turns: they share its state
        self._parsed = parse(ptx)
        self._kernels: dict[str, Kernel] = {}
        self._variables: dict[str, Allocation] = {}
        for name, variable in self._parsed.variables.items():
            if variable.space in ("global", "const"):
                data = np.zeros(variable.size, np.uint8)
                data[:] = np.frombuffer(variable.initial or bytes(variable.size), np.uint8)
                base = (_FIRST_VARIABLE + len(self._variables)) << ID_SHIFT
                writable = variable.space == "global"
                self._variables[name] = Allocation(
                    base, data, 0, Owner(data), 0, f"variable {name}", writable
                )

    @property
    def kernel_names(self) -> list[str]:
        """Names of the kernels."""
        return [name for name, function in self._parsed.functions.items() if function.entry]

    def get_function(self, name: str) -> Kernel:
        """A kernel.

        Raises:
            InputError: there is none of that name.
            UnsupportedError: it holds something that the emulator does not know.
        """
        if name not in self.kernel_names:
            raise InputError(f"kernel must be one of {self.kernel_names}, got {name!r}")
        if name not in self._kernels:
            self._kernels[name] = Kernel(self, link(self._parsed, name), self._variables)
        return self._kernels[name]

    def get_global(self, name: str) -> Array:
        """The bytes of a `__device__` or `__constant__` variable, to read or write.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self._variables:
            raise InputError(f"variable must be one of {list(self._variables)}, got {name!r}")
        return self._variables[name].window


class Kernel:
    """One kernel; call it as `kernel(grid, block, args, shared_mem=0)`.

    Attributes:
        name: in the PTX.
        max_dynamic_shared_size_bytes: set it to have more than 48 KB of shared memory.
        printed: what `printf` said in the latest launch, one text per call and thread.
    """

    def __init__(self, module: Module, program: Program, variables: dict[str, Allocation]) -> None:
        """Look up every instruction."""
        self.module, self.name = module, program.name
        self.max_dynamic_shared_size_bytes: int | None = None
        self._retired = [0] * len(program.instructions)
        self.printed: list[str] = []
        self._program, self._variables = program, variables
        self._table = [lookup(ins.parts, module.arch) for ins in program.instructions]
        self._granules = _granules(program, self._table)
        program.slots = share_registers(program)
        self._bound: dict[tuple[object, ...], Chunk] = {}

    @property
    def executed(self) -> dict[str, int]:
        """Operation -> instructions executed so far, each group of threads counted once."""
        total: dict[str, int] = {}
        for hits in (self._retired, *(chunk.hits for chunk in self._bound.values())):
            for entry, count in zip(self._table, hits, strict=True):
                if count:
                    total[entry.name] = total.get(entry.name, 0) + count
        return total

    @property
    def attributes(self) -> dict[str, int]:
        """What CuPy's kernels say of themselves, but for what only ptxas knows."""
        opted_in = self.max_dynamic_shared_size_bytes
        left = 48 * 1024 - self._program.static_bytes
        return {
            "max_threads_per_block": self._program.max_threads or 1024,
            "shared_size_bytes": self._program.static_bytes,
            "local_size_bytes": self._program.local_bytes,
            "binary_version": self.module.arch,
            "max_dynamic_shared_size_bytes": left if opted_in is None else opted_in,
        }

    def __call__(
        self, grid: Dim, block: Dim, args: Sequence[Any], *, shared_mem: int = 0, stream: Any = None
    ) -> LaunchCounters | None:
        """Run the kernel over the whole grid.

        Args:
            grid: blocks, up to three extents.
            block: threads, up to three extents.
            args: NumPy arrays (passed as pointers, written in place) and NumPy scalars.
            shared_mem: bytes of dynamic shared memory.
            stream: taken for the sake of CuPy's signature; every launch is complete on return.

        Returns:
            The counters, if the module counts.

        Raises:
            LaunchError: a limit is passed, or the arguments do not fit the parameters.
            KernelFault: the kernel has a bug.
        """
        blocks, threads = _three(grid), _three(block)
        check_launch(
            self.module.arch,
            self.name,
            blocks,
            threads,
            static_bytes=self._program.static_bytes,
            dynamic_bytes=shared_mem,
            opted_in=self.max_dynamic_shared_size_bytes,
            max_threads=self._program.max_threads,
            required=self._program.reqntid,
        )
        with self.module.lock, np.errstate(all="ignore"):
            chunk = self._chunk(blocks, threads, shared_mem)
            chunk.space = self._space(chunk, args)
            recorder = None
            if self.module.counters:
                recorder = Recorder(self._program.instructions, chunk.threads.geometry.threads)
            chunk.counters = recorder
            try:
                geometry = chunk.threads.geometry
                for first in range(0, geometry.total_blocks, geometry.blocks):
                    chunk.run(first)
            finally:
                chunk.space = AddressSpace()
                self.printed, chunk.printed = chunk.printed, []
        if recorder is None:
            return None
        self.module.last_counters = counted = recorder.result(self.name, self._table)
        return counted

    def _space(self, chunk: Chunk, args: Sequence[Any]) -> AddressSpace:
        """Everything reachable: arguments, parameters, variables."""
        space = AddressSpace()
        for variable in self._variables.values():
            variable.owner.writers = variable.owner.stamps = None
            space.allocations[variable.base >> ID_SHIFT] = variable
        pack_arguments(self._program, args, space, chunk.parameters)
        block = Allocation(
            PARAMETER_BASE, chunk.parameters, 0, Owner(chunk.parameters), 0, "parameters", False
        )
        space.allocations[PARAMETER_BASE >> ID_SHIFT] = block
        return space

    def _chunk(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], shared_mem: int
    ) -> Chunk:
        """The steps for a shape; those of the latest shapes are kept."""
        probe = Geometry(grid, block, 1)
        most = max(1, _CHUNK_THREADS // probe.stride)
        chunks = -(-probe.total_blocks // most)
        blocks = -(-probe.total_blocks // chunks)  # chunks of nearly the same size
        key = (block, blocks, shared_mem)
        if key in self._bound:
            self._bound[key] = self._bound.pop(key)  # the latest is the last
            self._bound[key].threads.set_grid(grid)
            return self._bound[key]
        chunk = Chunk(
            self._program,
            Geometry(grid, block, blocks),
            dynamic_bytes=shared_mem,
            symbols={name: variable.base for name, variable in self._variables.items()},
            granules=self._granules,
            checks=self.module.checks,
            step_limit=self.module.step_limit,
        )
        binder = Binder(chunk)
        for at, (ins, entry) in enumerate(
            zip(self._program.instructions, self._table, strict=True)
        ):
            step = entry.bind(binder, ins)
            if ins.guard is not None and ins.parts[0] != "bra":
                step = _guarded(binder, ins, at, step)
            chunk.steps.append(step)
        fuse_runs(binder, self._program, self._table, chunk.steps)
        self._bound[key] = chunk
        if len(self._bound) > _KEPT_SHAPES:
            oldest = self._bound.pop(next(iter(self._bound)))
            self._retired = [sum(pair) for pair in zip(self._retired, oldest.hits, strict=True)]
        return chunk


def _three(extent: Dim) -> tuple[int, int, int]:
    values = [int(extent)] if isinstance(extent, int | np.integer) else [int(n) for n in extent]
    if not 1 <= len(values) <= 3:
        raise InputError(f"grid and block must have one to three extents, got {extent!r}")
    x, y, z = (*values, 1, 1)[:3]
    return x, y, z


def _granules(program: Program, table: list[Operation]) -> tuple[int, int]:
    """The smallest shared access and the smallest global store, in bytes."""
    shared, stores = [16], [16]
    for ins, entry in zip(program.instructions, table, strict=True):
        if entry.kind not in ("load", "store", "atomic", "copy") or ins.parts[0] == "ldmatrix":
            continue
        if ins.parts[0] == "cp":
            shared += [operand.value for operand in ins.operands[2:3] if hasattr(operand, "value")]
            continue
        if ins.parts[0] == "stmatrix":
            continue
        space = next((p for p in ins.parts[1:] if p in _NAMED_SPACES), "")
        if space.startswith("shared") or not space:
            shared.append(access_bytes(ins))
        if space in ("global", "") and entry.kind in ("store", "atomic"):
            stores.append(access_bytes(ins))
    return min(shared), min(stores)


_NAMED_SPACES = ("shared", "shared::cta", "global", "local", "param", "const")


def _guarded(binder: Binder, ins: Instruction, at: int, step: Step) -> Step:
    """A step under a guard predicate."""
    assert ins.guard is not None
    predicate = binder.predicate(Name(ins.guard[0], negated=ins.guard[1]))
    chunk = binder.chunk

    def guarded(group: Group) -> Any:
        part = chunk.threads.part(group, predicate())
        if part is None:
            return None
        if part is group:
            return step(group)
        outcome = step(part)
        if outcome is None or isinstance(outcome, Wait):
            return outcome
        assert outcome is GONE
        whole = np.ones(binder.threads, np.bool_) if group.mask is None else group.mask
        assert part.mask is not None
        chunk.resume(at + 1, whole & ~part.mask)
        return GONE

    return guarded
