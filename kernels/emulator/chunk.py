"""Runs one chunk of the grid: steps, divergence, waiting, limits.

Groups of threads with equal program counter run together, the lowest counter first; a group that
reaches the place of another one joins it. So branches come together again without any analysis of
the control flow. A group that runs long while others could is made to give way, so that one thread
may wait for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from minibert.kernels.emulator.barriers import Barriers
from minibert.kernels.emulator.device_memory import ID_SHIFT
from minibert.kernels.emulator.epochs import Epochs
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.global_shadow import GlobalShadow
from minibert.kernels.emulator.machine import WARP, Geometry, Group, Threads, fault
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.ports import GenericPort, GlobalPort, LocalPort, SharedPort
from minibert.kernels.emulator.program import GUARD_BYTES, Program
from minibert.kernels.emulator.shadow import SharedShadow
from minibert.kernels.emulator.types import Array
from minibert.kernels.emulator.writers import GlobalWriters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minibert.kernels.emulator.bind import Step
    from minibert.kernels.emulator.copies import Copies
    from minibert.kernels.emulator.counters import Recorder
    from minibert.kernels.emulator.device_memory import AddressSpace

__all__ = ["GONE", "PARAMETER_BASE", "Chunk", "Wait"]

PARAMETER_BASE = 2 << ID_SHIFT
GONE = object()  # the group exited or waits at a barrier
_FAR = 1 << 60
_PATIENCE = 2000  # steps of one group while others could run


class Wait:
    """Outcome of a `.sync` step some of whose warps are not complete yet."""

    __slots__ = ("late",)

    def __init__(self, late: Array) -> None:
        """Remember the lanes (mask) that must wait."""
        self.late = late


class Chunk:
    """A chunk of the grid, made once and run for each part of the grid in turn."""

    def __init__(
        self,
        program: Program,
        geometry: Geometry,
        *,
        dynamic_bytes: int,
        symbols: Mapping[str, int],
        granules: tuple[int, int],
        checks: bool,
        step_limit: int,
    ) -> None:
        """Make the memories.

        Args:
            program: the kernel.
            geometry: of the launch.
            dynamic_bytes: dynamic shared memory.
            symbols: addresses of the module's variables.
            granules: smallest shared access and smallest global store of the kernel.
            checks: whether to keep shadows.
            step_limit: instructions of one path until it counts as endless.
        """
        self.program, self.checks, self.step_limit = program, checks, step_limit
        self.symbols = symbols
        self.dynamic_bytes = dynamic_bytes
        self.threads = Threads(geometry)
        self.dynamic_start = -(-program.shared_bytes // 1024) * 1024 if dynamic_bytes else 0
        self.shared_bytes = max(program.shared_bytes, self.dynamic_start + dynamic_bytes)
        self.real_shared_bytes = program.static_bytes + dynamic_bytes
        self.memory = GlobalPort(self)
        self.shared = SharedPort(self)
        self.local = LocalPort(self)
        self.generic = GenericPort(self)
        self.barriers = Barriers(self)
        self.writers = GlobalWriters(self, granules[1])
        self.epochs = Epochs(self) if checks else None
        self.shadow: SharedShadow | None = None
        self.global_shadow: GlobalShadow | None = None
        if self.epochs is not None:
            self.global_shadow = GlobalShadow(self, self.epochs, granules[1])
            if self.shared_bytes > 0:
                self.shadow = SharedShadow(self, self.epochs, granules[0])
        self.counters: Recorder | None = None
        self.copies: Copies | None = None
        self.space: AddressSpace
        self.parameters = np.zeros(max(program.parameter_bytes, 1), np.uint8)
        self.parameter_base = PARAMETER_BASE
        self.printed: list[str] = []
        self.carry = np.zeros(geometry.threads, np.bool_)
        self.steps: list[Step] = []
        self.indices = {id(ins): index for index, ins in enumerate(program.instructions)}
        self.hits = [0] * len(program.instructions)
        self.ready: dict[int, Array] = {}
        self.parked: dict[int, Array] = {}
        self.clock = 0
        self._specials = self._make_specials()

    # What instructions refer to

    def _make_specials(self) -> dict[str, Array]:
        threads, geometry = self.threads, self.threads.geometry
        specials = {"%laneid": threads.lane, "%warpid": threads.warp}
        for axis, name in enumerate("xyz"):
            specials[f"%tid.{name}"] = threads.tid[axis]
            specials[f"%ctaid.{name}"] = threads.ctaid[axis]
            specials[f"%ntid.{name}"] = self._constant(geometry.block[axis])
            specials[f"%nctaid.{name}"] = threads.nctaid[axis]
        one = np.uint32(1)
        bit = one << threads.lane
        specials["%lanemask_eq"] = bit
        specials["%lanemask_lt"] = bit - one
        specials["%lanemask_le"] = (bit - one) | bit
        specials["%lanemask_gt"] = ~((bit - one) | bit)
        specials["%lanemask_ge"] = ~(bit - one)
        specials["%nwarpid"] = self._constant(geometry.warps)
        specials["WARP_SZ"] = self._constant(WARP)
        for name in ("%smid", "%gridid", "%clusterid.x", "%cluster_ctarank"):
            specials[name] = self._constant(0)
        specials["%dynamic_smem_size"] = self._constant(self.dynamic_bytes)
        specials["%total_smem_size"] = self._constant(self.real_shared_bytes)
        return specials

    def _constant(self, value: int) -> Array:
        return np.broadcast_to(np.uint32(value), (self.threads.geometry.threads,))

    def special(self, name: str) -> Array | None:
        """A special register, or None if it is none."""
        if name in self._specials:
            return self._specials[name]
        if name.startswith("%"):
            raise UnsupportedError(f"PTX special register {name} is not known to the emulator")
        return None

    def symbol(self, name: str) -> int:
        """Address of a variable in its own space."""
        program = self.program
        if name in program.shared:
            offset, size = program.shared[name]
            return offset if size else self.dynamic_start
        if name in program.local:
            return program.local[name]
        if name in program.parameters:
            return self.parameter_base + program.parameters[name][0]
        if name in self.symbols:
            return self.symbols[name]
        raise UnsupportedError(f"PTX name {name} is not known")

    def is_variable(self, name: str) -> bool:
        """Whether the name is a variable of the module, the kernel or a call."""
        program = self.program
        return any(
            name in names
            for names in (program.shared, program.local, program.parameters, self.symbols)
        )

    def guards(self) -> list[tuple[int, int]]:
        """Byte ranges of a block's shared memory that belong to no array."""
        ranges = []
        used = sorted((o, o + n) for o, n in self.program.shared.values() if n)
        ranges = [(end, end + GUARD_BYTES) for _, end in used]
        if self.dynamic_bytes and used:
            ranges[-1] = (used[-1][1], self.dynamic_start)
        return ranges

    def index_of(self, instruction: Instruction) -> int:
        """Index of an instruction, as a stamp holds it."""
        return min(self.indices[id(instruction)], (1 << 15) - 1)

    def instruction(self, index: int) -> Instruction:
        """The instruction at an index."""
        return self.program.instructions[index]

    def report(
        self,
        kind: str,
        detail: str,
        instruction: Instruction,
        lane: int,
        other: Instruction | None = None,
    ) -> NoReturn:
        """Raise a finding of one lane."""
        fault(kind, detail, instruction, self.program.name, self.threads.name(lane), other)

    # Running

    def run(self, first_block: int) -> None:
        """Run the blocks from `first_block` on, as many as the chunk holds."""
        group = self.threads.start(first_block)
        self.barriers.start()
        self.ready.clear()
        self.parked.clear()
        self.local.start()
        if self.epochs is not None:
            self.epochs.start()
        if self.global_shadow is not None:
            self.global_shadow.start()
        if self.shadow is not None:
            self.shadow.start()
        if self.copies is not None:
            self.copies.start()
        self.shared.data[...] = 0
        self.clock = 0
        self._loop(group)

    def _loop(self, group: Group) -> None:
        steps, hits, counters = self.steps, self.hits, self.counters
        at, lowest, alarm = 0, _FAR, min(_PATIENCE, self.step_limit)
        clock = 0
        threads = self.threads.geometry.threads
        while True:
            hits[at] += 1
            if counters is not None:
                counters.step(at, group.warps(threads), group.count)
            self.clock = clock = clock + 1
            outcome = steps[at](group)
            if outcome is None:
                at += 1
                if at < lowest and clock < alarm:
                    continue
            elif type(outcome) is int:
                at = outcome
                if at < lowest and clock < alarm:
                    continue
            elif outcome is GONE:
                group = Group(None, None, 0)
            elif isinstance(outcome, Wait):
                self._park(at, outcome.late)
                mask = self._mask(group) & ~outcome.late
                group = self.threads.group(mask)
            else:
                target, taken = outcome
                mask = self._mask(group)
                self.resume(target, taken)
                self.resume(at + 1, mask & ~taken)
                group = Group(None, None, 0)
            if group.count:
                self.resume(at, self._mask(group))
            patient = clock < alarm
            if not patient:
                if clock >= self.step_limit:
                    self._endless(at, group)
                alarm = min(clock + _PATIENCE, self.step_limit)
            chosen = self._choose(at if group.count else None, patient)
            if chosen is None:
                return
            at, mask, lowest = chosen
            group = self.threads.group(mask)

    def _mask(self, group: Group) -> Array:
        if group.mask is None and group.count:
            return np.ones(self.threads.geometry.threads, np.bool_)
        return np.zeros(0, np.bool_) if group.mask is None else group.mask

    def resume(self, at: int, mask: Array) -> None:
        """Let threads go on at an instruction."""
        if at in self.ready:
            self.ready[at] = self.ready[at] | mask
        elif mask.any():
            self.ready[at] = mask

    def _park(self, at: int, late: Array) -> None:
        """Let incomplete warps wait; those that waited here already look again."""
        if at in self.parked:
            self.resume(at, self.parked.pop(at) | late)
        else:
            self.parked[at] = late

    def _choose(self, last: int | None, patient: bool) -> tuple[int, Array, int] | None:
        """The next group: (place, mask, place of the next one above); None when all are done."""
        ready = self.ready
        if not ready:
            self._finish()
            return None
        at = min(ready)
        if not patient and last == at and len(ready) > 1:
            at = min(place for place in ready if place != at)
        mask = ready.pop(at)
        if at in self.parked:
            mask = mask | self.parked.pop(at)
        above = [place for place in ready if place > at]
        return at, mask, min(above) if above else _FAR

    def _finish(self) -> None:
        """Nobody can run: all have exited, or some wait for ever."""
        for at, mask in self.parked.items():
            lane = int(np.argmax(mask))
            present = np.flatnonzero(mask[lane // WARP * WARP :][:WARP])
            detail = f"only lanes {_ranges(present)} of the warp come to this instruction"
            self.report("incomplete warp", detail, self.instruction(at), lane)
        stuck = self.barriers.stuck()
        if stuck is not None:
            block, number, barrier = stuck
            at, lanes = next(iter(barrier.places.items()))
            lane = block * self.threads.geometry.stride + int(np.argmax(lanes))
            here = int(np.count_nonzero(barrier.waiting)) + barrier.passed
            detail = f"{here} threads of the block wait for barrier {number}; the others never come"
            self.report("divergent barrier", detail, self.instruction(at), lane)

    def _endless(self, at: int, group: Group) -> NoReturn:
        lane = 0 if group.lanes is None or not len(group.lanes) else int(group.lanes[0])
        detail = f"the path is longer than {self.step_limit} instructions: an endless loop?"
        self.report("step limit", detail, self.instruction(at), lane)

    def leave(self, group: Group) -> None:
        """Threads of a group exit."""
        if group.mask is None:
            self.threads.live[...] = False
        else:
            self.threads.live &= ~group.mask
        self.threads.live_count -= group.count
        self.barriers.release()
        while self.parked:  # an exited lane is waited for no longer
            at, mask = self.parked.popitem()
            self.resume(at, mask)

    def missing(self, group: Group, members: Array | None) -> Array | None:
        """Lanes of a group (mask) whose warp lacks live members; None if every warp is complete.

        Args:
            group: that came to a `.sync` instruction.
            members: (threads,) the member masks, or None for the whole warp.
        """
        if group.mask is None:
            return None
        present = group.mask.reshape(-1, WARP)
        needed = (
            self.threads.live.reshape(-1, WARP) & np.logical_or.reduce(present, axis=1)[:, None]
        )
        if members is not None:
            masks = np.where(group.mask, members, np.uint32(0)).reshape(-1, WARP)
            named = np.bitwise_or.reduce(masks, axis=1)
            needed = needed & ((named[:, None] >> np.arange(WARP, dtype=np.uint32)) & 1 == 1)
        incomplete = np.logical_or.reduce(needed & ~present, axis=1)
        if not incomplete.any():
            return None
        late: Array = (present & incomplete[:, None]).reshape(-1)
        return late


def _ranges(numbers: Array) -> str:
    """`0-15, 20` for a sorted list of numbers."""
    breaks = np.flatnonzero(np.diff(numbers) > 1)
    starts = [int(n) for n in numbers[np.r_[0, breaks + 1]]]
    ends = [int(n) for n in numbers[np.r_[breaks, len(numbers) - 1]]]
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True))
