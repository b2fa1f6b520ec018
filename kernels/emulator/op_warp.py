"""Exchange between the lanes of a warp: shuffles, votes, matches, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.chunk import Wait
from minibert.kernels.emulator.machine import WARP, Group
from minibert.kernels.emulator.operands import Immediate, Operand, Pair
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

__all__ = ["together"]

_FULL = 0xFFFFFFFF


def together(
    b: Binder, ins: Instruction, members: Operand | None, work: Callable[[Group], Any]
) -> Step:
    """A step of a `.sync` instruction: it runs when the members of a warp are all there.

    Args:
        b: the binder.
        ins: the instruction.
        members: the operand with the member mask; None if the whole warp must come, and live.
        work: what to do then.
    """
    chunk = b.chunk
    whole = members is None
    constant = isinstance(members, Immediate) and members.value % (1 << 32) == _FULL
    masks = None if whole or constant or members is None else b.source(members, "u32")

    def step(group: Group) -> Any:
        if masks is not None:
            own = (masks >> chunk.threads.lane) & np.uint32(1)
            outside = own == 0 if group.mask is None else group.mask & (own == 0)
            if outside.any():
                lane = int(np.argmax(outside))
                detail = f"lane {lane % WARP} is not in its own member mask {int(masks[lane]):#x}"
                chunk.report("incomplete warp", detail, ins, lane)
        if group.mask is not None:
            late = chunk.missing(group, masks)
            if late is not None:
                return Wait(late)
            if whole:
                rows = group.mask.reshape(-1, WARP)
                partial = rows.any(axis=1) & ~rows.all(axis=1)
                if partial.any():
                    row = int(np.argmax(partial))
                    lane = row * WARP + int(np.argmax(rows[row]))
                    detail = f"{int(rows[row].sum())} lanes of the warp are left; all 32 must come"
                    chunk.report("incomplete warp", detail, ins, lane)
        return work(group)

    return step


@operation("shfl", "sync", "up down bfly idx", "b32", kind="warp")
def shuffle(b: Binder, ins: Instruction, _: str, mode: str, kind: str) -> Step:
    """Take the value of another lane; a second result says whether that lane is in range."""
    target = ins.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write, write_range = b.writer(first, kind), b.writer(second, "pred")
    values = b.source(ins.operands[1], kind)
    by, clamp = b.source(ins.operands[2], "u32"), b.source(ins.operands[3], "u32")
    lane = b.chunk.threads.lane.astype(np.int64)
    warp_start = np.arange(b.threads, dtype=np.int64) - lane
    constant = by.strides == (0,) and clamp.strides == (0,)

    def plan() -> tuple[Array, Array]:
        offset = (by & np.uint32(31)).astype(np.int64)
        bound = (clamp & np.uint32(31)).astype(np.int64)
        segment = ((clamp >> np.uint32(8)) & np.uint32(31)).astype(np.int64)
        low = lane & segment
        top = low | (bound & ~segment)
        if mode == "up":
            source = lane - offset
            inside = source >= top
        else:
            source = {"down": lane + offset, "bfly": lane ^ offset}.get(
                mode, low | (offset & ~segment)
            )
            inside = source <= top
        return warp_start + np.where(inside, source, lane), inside

    fixed = plan() if constant else None

    def work(group: Group) -> None:
        source, inside = fixed if fixed is not None else plan()
        if group.mask is not None:
            absent = group.mask & ~group.mask[source]
            if absent.any():
                at = int(np.argmax(absent))
                detail = f"lane {at % WARP} reads lane {int(source[at]) % WARP}, which is not there"
                b.chunk.report("incomplete warp", detail, ins, at)
        write(values.take(source), group.alu)
        if second is not None:
            write_range(inside, group.alu)

    return together(b, ins, ins.operands[4], work)


def _rows(predicate: Array, group: Group, *, absent: bool) -> Array:
    """A predicate as (warps, 32); lanes that are not in the group have the value `absent`."""
    if group.mask is not None:
        predicate = np.where(group.mask, predicate, absent)
    return np.ascontiguousarray(predicate).reshape(-1, WARP)


def _ballot(rows: Array) -> Array:
    packed = np.packbits(rows, axis=1, bitorder="little")
    return packed.view(np.uint32).reshape(-1)


@operation("vote", "sync", "ballot", "b32", kind="warp")
@operation("vote", "sync", "all any uni", "pred", kind="warp")
def vote(b: Binder, ins: Instruction, _: str, how: str, kind: str) -> Step:
    """Combine a predicate of the members of a warp."""
    predicate = b.predicate(ins.operands[1])
    write = b.writer(ins.operands[0], kind)

    def work(group: Group) -> None:
        if how == "all":
            result = np.logical_and.reduce(_rows(predicate(), group, absent=True), axis=1)
        elif how == "any":
            result = np.logical_or.reduce(_rows(predicate(), group, absent=False), axis=1)
        elif how == "uni":
            true = np.logical_and.reduce(_rows(predicate(), group, absent=True), axis=1)
            some = np.logical_or.reduce(_rows(predicate(), group, absent=False), axis=1)
            result = true | ~some
        else:
            result = _ballot(_rows(predicate(), group, absent=False))
        write(np.repeat(result, WARP), group.alu)

    return together(b, ins, ins.operands[2], work)


@operation("activemask", "b32", kind="warp")
def activemask(b: Binder, ins: Instruction, kind: str) -> Step:
    """The lanes that run together now."""
    write = b.writer(ins.operands[0], kind)
    ones = np.ones(b.threads, np.bool_)

    def step(group: Group) -> None:
        write(np.repeat(_ballot(_rows(ones, group, absent=False)), WARP), group.alu)

    return step


@operation("elect", "sync", kind="warp", since=90)
def elect(b: Binder, ins: Instruction, _: str) -> Step:
    """Choose one lane of a warp: the lowest."""
    target = ins.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write, write_leader = b.writer(first, "b32"), b.writer(second, "pred")
    ones = np.ones(b.threads, np.bool_)

    def work(group: Group) -> None:
        leader = np.repeat(_rows(ones, group, absent=False).argmax(axis=1), WARP)
        write(leader.astype(np.uint32), group.alu)
        write_leader(leader == b.chunk.threads.lane, group.alu)

    return together(b, ins, ins.operands[1], work)


@operation("match", "any all", "sync", "b32 b64", kind="warp")
def match(b: Binder, ins: Instruction, how: str, _: str, kind: str) -> Step:
    """The lanes that hold the same value."""
    target = ins.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write, write_all = b.writer(first, "b32"), b.writer(second, "pred")
    values = b.source(ins.operands[1], kind)

    def work(group: Group) -> None:
        rows = np.ascontiguousarray(values).reshape(-1, WARP)
        present = _rows(np.ones(b.threads, np.bool_), group, absent=False)
        equal = (rows[:, :, None] == rows[:, None, :]) & present[:, None, :]
        masks = _ballot(equal.reshape(-1, WARP))
        if how == "any":
            write(masks, group.alu)
            return
        everyone = np.repeat(_ballot(present), WARP)
        same = np.repeat(
            (equal | ~present[:, None, :] | ~present[:, :, None]).all(axis=(1, 2)), WARP
        )
        write(np.where(same, everyone, np.uint32(0)), group.alu)
        if second is not None:
            write_all(same, group.alu)

    return together(b, ins, ins.operands[2], work)


_REDUCE: dict[str, tuple[np.ufunc, int | None]] = {
    "add": (np.add, 0),
    "and": (np.bitwise_and, _FULL),
    "or": (np.bitwise_or, 0),
    "xor": (np.bitwise_xor, 0),
    "min": (np.minimum, None),
    "max": (np.maximum, None),
}


@operation("redux", "sync", "add min max", "u32 s32", kind="warp", since=80)
@operation("redux", "sync", "and or xor", "b32", kind="warp", since=80)
def redux(b: Binder, ins: Instruction, _: str, how: str, kind: str) -> Step:
    """Reduce an integer over the members of a warp."""
    values = b.source(ins.operands[1], kind)
    write = b.writer(ins.operands[0], kind)
    function, neutral = _REDUCE[how]
    dtype = TYPES[kind].dtype
    if neutral is None:
        limits = np.iinfo(dtype)
        neutral = int(limits.max if how == "min" else limits.min)
    fill = dtype.type(neutral)

    def work(group: Group) -> None:
        present = values if group.mask is None else np.where(group.mask, values, fill)
        rows = np.ascontiguousarray(present).reshape(-1, WARP)
        write(np.repeat(function.reduce(rows, axis=1, dtype=dtype), WARP), group.alu)

    return together(b, ins, ins.operands[2], work)


@operation("bar", "warp", "sync", kind="barrier")
def syncwarp(b: Binder, ins: Instruction, *_: str) -> Step:
    """`__syncwarp`: orders what the members did to memory."""
    chunk = b.chunk

    def work(group: Group) -> None:
        if chunk.epochs is not None:
            chunk.epochs.warp_passed(group)

    return together(b, ins, ins.operands[0], work)
