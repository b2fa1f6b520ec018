"""Counts what a profiler would: instructions, sectors, wavefronts, operations, bytes.

Global memory moves in sectors of 32 bytes: a request of a warp is ideal if it touches no more of
them than its distinct bytes fill. Shared memory has 32 banks of 4 bytes: a request takes as many
wavefronts as the bank with the most distinct words has, per 32 lanes for accesses of up to 4 bytes,
per 16 for 8 bytes and per 8 for 16 bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from minibert.kernels.emulator.faults import Location
from minibert.kernels.emulator.machine import WARP, Group
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import Operation
from minibert.kernels.emulator.types import Array

__all__ = ["LaunchCounters", "LineCounters", "Recorder"]

_SECTOR = 32
_BANKS = 32


@dataclass(slots=True)
class LineCounters:
    """Counts of one instruction, or summed over one source line.

    Attributes:
        warp_instructions: executed, once per warp.
        thread_instructions: executed, once per thread.
        global_sectors: of 32 bytes, moved; `global_ideal` at best.
        shared_wavefronts: needed; `shared_ideal` without bank conflicts.
        global_bytes: asked for by the threads.
    """

    warp_instructions: int = 0
    thread_instructions: int = 0
    global_sectors: int = 0
    global_ideal: int = 0
    global_bytes: int = 0
    shared_wavefronts: int = 0
    shared_ideal: int = 0

    def add(self, other: LineCounters) -> None:
        """Add the counts of another."""
        for name in LineCounters.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class LaunchCounters:
    """Counts of one launch.

    Attributes:
        kernel: its name.
        instructions: kind -> instructions of warps.
        flops: operations of the threads and of the tensor instructions.
        tensor_flops: of the tensor instructions alone.
        load: of global loads and `cp.async` sources.
        store: of global stores.
        atomic: of global atomics.
        shared_load: of shared loads, `ldmatrix` included.
        shared_store: of shared stores and `cp.async` destinations.
        lines: source line -> counts.
    """

    kernel: str
    instructions: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    tensor_flops: int = 0
    load: LineCounters = field(default_factory=LineCounters)
    store: LineCounters = field(default_factory=LineCounters)
    atomic: LineCounters = field(default_factory=LineCounters)
    shared_load: LineCounters = field(default_factory=LineCounters)
    shared_store: LineCounters = field(default_factory=LineCounters)
    lines: dict[Location, LineCounters] = field(default_factory=dict)

    @property
    def warp_instructions(self) -> int:
        """All instructions of warps."""
        return sum(self.instructions.values())

    @property
    def load_efficiency(self) -> float:
        """Ideal sectors per sector loaded; 1 is best."""
        return _ratio(self.load.global_ideal, self.load.global_sectors)

    @property
    def store_efficiency(self) -> float:
        """Ideal sectors per sector stored; 1 is best."""
        return _ratio(self.store.global_ideal, self.store.global_sectors)

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts of shared memory beyond those without conflicts."""
        load, store = self.shared_load, self.shared_store
        return (
            load.shared_wavefronts
            - load.shared_ideal
            + store.shared_wavefronts
            - store.shared_ideal
        )

    @property
    def bytes_loaded(self) -> int:
        """Bytes that global loads move, whole sectors."""
        return self.load.global_sectors * _SECTOR

    @property
    def bytes_stored(self) -> int:
        """Bytes that global stores move, whole sectors."""
        return self.store.global_sectors * _SECTOR

    def table(self) -> str:
        """The counts as a text of a few lines."""
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.instructions.most_common())
        rows = [
            f"{self.kernel}: {self.warp_instructions} warp instructions ({kinds})",
            f"  {self.flops} FLOP, of which {self.tensor_flops} by tensor instructions",
        ]
        for name, counts in (("load", self.load), ("store", self.store), ("atomic", self.atomic)):
            share = _ratio(counts.global_ideal, counts.global_sectors)
            rows.append(
                f"  global {name}: {counts.global_sectors} sectors, {counts.global_ideal} ideal "
                f"(efficiency {share:.3f}), {counts.global_bytes} bytes asked for"
            )
        for name, counts in (("load", self.shared_load), ("store", self.shared_store)):
            rows.append(
                f"  shared {name}: {counts.shared_wavefronts} wavefronts, "
                f"{counts.shared_ideal} without bank conflicts"
            )
        return "\n".join(rows)


def _ratio(best: int, real: int) -> float:
    return best / real if real else 1.0


_TENSOR_FLOPS = {
    "m16n8k32": 2 * 16 * 8 * 32,
    "m16n8k16": 2 * 16 * 8 * 16,
    "m16n8k8": 2 * 16 * 8 * 8,
    "m16n8k4": 2 * 16 * 8 * 4,
    "m8n8k16": 2 * 8 * 8 * 16,
}


def _first(warp: Array, value: Array) -> Array:
    """Where a new pair begins, of sorted pairs."""
    fresh: Array = np.r_[True, (warp[1:] != warp[:-1]) | (value[1:] != value[:-1])]
    return fresh


class Recorder:
    """Counts while a launch runs."""

    def __init__(self, instructions: list[Instruction], threads: int) -> None:
        """Start at zero."""
        self.instructions = instructions
        self.index = {id(ins): at for at, ins in enumerate(instructions)}
        self.by_place = [LineCounters() for _ in instructions]
        self.threads = threads
        self.kinds: dict[int, str] = {}

    def step(self, at: int, warps: int, threads: int) -> None:
        """One instruction of a group."""
        counts = self.by_place[at]
        counts.warp_instructions += warps
        counts.thread_instructions += threads

    def global_access(
        self, instruction: Instruction, group: Group, address: Array, size: int, kind: str
    ) -> None:
        """A global access of a group."""
        at = self.index[id(instruction)]
        self.kinds.setdefault(at, "atomic" if kind == "atomic" else kind)
        counts = self.by_place[at]
        warp, value = self._sorted(group, address.astype(np.uint64))
        fresh = _first(warp, value)
        per_warp = np.bincount(warp[fresh], minlength=1)
        counts.global_ideal += int((-(-per_warp * size // _SECTOR)).sum())
        counts.global_sectors += int(_first(warp, value >> np.uint64(5)).sum())
        counts.global_bytes += len(address) * size

    def shared_access(
        self, instruction: Instruction, group: Group, address: Array, size: int, kind: str
    ) -> None:
        """A shared access of a group."""
        at = self.index[id(instruction)]
        counts = self.by_place[at]
        self.kinds.setdefault(at, f"shared {kind}")
        lanes = np.arange(self.threads) if group.lanes is None else group.lanes
        phase_lanes = WARP * 4 // max(size, 4)
        words = max(size // 4, 1)
        phase = np.repeat(lanes // phase_lanes, words)
        word = (address.astype(np.int64) // 4)[:, None] + np.arange(words)
        keys = np.unique(phase * (1 << 22) + word.reshape(-1))
        banks = (keys >> 22) * _BANKS + (keys % _BANKS)
        bank, load = np.unique(banks, return_counts=True)
        phases, starts = np.unique(bank // _BANKS, return_index=True)
        counts.shared_wavefronts += int(np.maximum.reduceat(load, starts).sum())
        counts.shared_ideal += len(phases)

    def _sorted(self, group: Group, values: Array) -> tuple[Array, Array]:
        """Warp and value of each lane, sorted by both."""
        lanes = np.arange(self.threads) if group.lanes is None else group.lanes
        warp = lanes // WARP
        order = np.lexsort((values, warp))
        return warp[order], values[order]

    def result(self, kernel: str, table: list[Operation]) -> LaunchCounters:
        """Sum up.

        Args:
            kernel: name.
            table: the operation of each instruction.
        """
        total = LaunchCounters(kernel)
        sums = {
            "load": total.load,
            "store": total.store,
            "atomic": total.atomic,
            "shared load": total.shared_load,
            "shared store": total.shared_store,
            "shared copy": total.shared_store,
            "shared atomic": total.shared_store,
        }
        for at, (instruction, counts) in enumerate(
            zip(self.instructions, self.by_place, strict=True)
        ):
            if not counts.warp_instructions:
                continue
            entry = table[at]
            total.instructions[entry.kind] += counts.warp_instructions
            width = 2 if any(part.endswith("x2") for part in entry.choice) else 1
            total.flops += counts.thread_instructions * entry.flops * width
            if entry.kind == "tensor":
                shape = next(part for part in entry.choice if part in _TENSOR_FLOPS)
                flops = counts.warp_instructions * _TENSOR_FLOPS[shape]
                if entry.choice[0].startswith("sp"):
                    flops //= 2  # two of every four products are taken
                total.tensor_flops += flops
                total.flops += flops
            if at in self.kinds:
                sums[self.kinds[at]].add(counts)
                if self.kinds[at] == "shared copy":  # its source is a global load
                    total.load.add(
                        LineCounters(
                            global_sectors=counts.global_sectors,
                            global_ideal=counts.global_ideal,
                            global_bytes=counts.global_bytes,
                        )
                    )
            line = total.lines.setdefault(instruction.location.outermost, LineCounters())
            line.add(counts)
        return total
