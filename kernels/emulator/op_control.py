"""Branches, barriers, exits, and instructions that only order or wait."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.chunk import GONE
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import WARP, Group, pick
from minibert.kernels.emulator.op_print import c_string
from minibert.kernels.emulator.operands import Immediate, Name
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import Array


@operation("bra", mods="uni", kind="control")
def bra(b: Binder, ins: Instruction) -> Step:
    """Jump; the guard decides for each thread."""
    target = ins.operands[0]
    if not isinstance(target, Name) or target.name not in b.program.labels:
        raise UnsupportedError(f"PTX branch to an unknown label: {ins.text}")
    index = b.program.labels[target.name]
    if ins.guard is None:
        return lambda group: index
    predicate = b.predicate(Name(ins.guard[0], negated=ins.guard[1]))

    def step(group: Group) -> Any:
        taken = predicate()
        if group.mask is not None:
            taken = taken & group.mask
        count = int(np.count_nonzero(taken))
        if count == group.count:
            return index
        if count == 0:
            return None
        return index, taken.copy() if group.mask is None else taken

    return step


@operation("brx", "idx", mods="uni", kind="control")
def brx(b: Binder, ins: Instruction, _: str) -> Step:
    """Jump to one of a table of labels."""
    selector = b.source(ins.operands[0], "u32")
    table = ins.operands[1]
    if not isinstance(table, Name) or table.name not in b.program.tables:
        raise UnsupportedError(f"PTX branch table is not known: {ins.text}")
    places = [b.program.labels[label] for label in b.program.tables[table.name]]

    def step(group: Group) -> Any:
        chosen = pick(selector, group.lanes)
        if int(chosen.max()) >= len(places):
            lane = int(np.argmax(chosen >= len(places)))
            lane = lane if group.lanes is None else int(group.lanes[lane])
            b.chunk.report("trap", "a branch index is beyond its table", ins, lane)
        for number in np.unique(chosen):
            part = b.chunk.threads.part(group, selector == number)
            assert part is not None
            full = np.ones(b.threads, np.bool_) if part.mask is None else part.mask
            b.chunk.resume(places[int(number)], full)
        return GONE

    return step


@operation("ret", mods="uni", kind="control")
@operation("exit", kind="control")
def leave(b: Binder, ins: Instruction) -> Step:
    """The threads end."""

    def step(group: Group) -> Any:
        b.chunk.leave(group)
        return GONE

    return step


@operation("trap", kind="control")
@operation("brkpt", kind="control")
def trap(b: Binder, ins: Instruction) -> Step:
    """The kernel stops itself; a failed `assert` has its condition as a parameter."""

    def step(group: Group) -> None:
        lane = 0 if group.lanes is None else int(group.lanes[0])
        detail = "the kernel stopped itself"
        if ins.operands:
            detail = f"assertion failed: {_condition(b, ins, lane)}"
        b.chunk.report("trap", detail, ins, lane)

    return step


def _condition(b: Binder, ins: Instruction, lane: int) -> str:
    """Text of an assertion: the parameter in local memory points to it."""
    parameter = ins.operands[0]
    assert isinstance(parameter, Name)
    local = b.chunk.local
    at = lane * local.stride + b.program.local[parameter.name]
    return c_string(b.chunk, int(local.views[8][at // 8]))


def _number(b: Binder, ins: Instruction, index: int) -> Array:
    return b.source(ins.operands[index], "u32")


def _uniform(b: Binder, ins: Instruction, values: Array, group: Group) -> int:
    """A barrier number or count, which every thread must agree on."""
    mine = pick(values, group.lanes)
    if int(mine.min()) != int(mine.max()):
        lane = 0 if group.lanes is None else int(group.lanes[0])
        b.chunk.report("divergent barrier", "threads name different barriers", ins, lane)
    return int(mine[0])


@operation("bar", "sync", mods="cta aligned", kind="barrier")
@operation("barrier", "sync", mods="cta aligned", kind="barrier")
@operation("bar", "arrive", mods="cta aligned", kind="barrier")
@operation("barrier", "arrive", mods="cta aligned", kind="barrier")
def barrier(b: Binder, ins: Instruction, what: str) -> Step:
    """Wait for the threads of the block, or say that one is there."""
    number = _number(b, ins, 0)
    count = _number(b, ins, 1) if len(ins.operands) > 1 else None
    at = b.chunk.indices[id(ins)]
    barriers = b.chunk.barriers

    def step(group: Group) -> Any:
        which = _uniform(b, ins, number, group)
        threads = 0 if count is None else _uniform(b, ins, count, group)
        if threads % WARP:
            detail = f"a barrier for {threads} threads, which is no multiple of {WARP}"
            b.chunk.report("divergent barrier", detail, ins, 0)
        if what == "sync":
            return None if barriers.sync(ins, at, group, which, threads) else GONE
        mask = np.ones(b.threads, np.bool_) if group.mask is None else group.mask
        b.chunk.resume(at + 1, mask)
        barriers.arrive(ins, group, which, threads)
        return GONE

    return step


@operation("bar", "red", "popc and or", mods="cta aligned u32 pred", kind="barrier")
@operation("barrier", "red", "popc and or", mods="cta aligned u32 pred", kind="barrier")
def barrier_reduce(b: Binder, ins: Instruction, _: str, how: str) -> Step:
    """Wait for all threads of the block, and combine a predicate of each."""
    if len(ins.operands) != 3 or not isinstance(ins.operands[1], Immediate):
        raise UnsupportedError(f"PTX {ins.text}: a reduction with a thread count")
    predicate = b.predicate(ins.operands[2])
    write = b.writer(ins.operands[0], "u32" if how == "popc" else "pred")
    number = ins.operands[1].value
    at = b.chunk.indices[id(ins)]
    chunk = b.chunk
    seen = np.zeros(b.threads, np.bool_)

    def step(group: Group) -> Any:
        lanes = slice(None) if group.lanes is None else group.lanes
        seen[lanes] = predicate()[lanes]
        through = chunk.barriers.sync(ins, at, group, number, 0)
        geometry = chunk.threads.geometry
        live = chunk.threads.live
        rows = (geometry.blocks, geometry.stride)
        if how == "and":
            result = np.logical_and.reduce((seen | ~live).reshape(rows), axis=1)
        else:
            result = np.count_nonzero((seen & live).reshape(rows), axis=1)
            result = result > 0 if how == "or" else result.astype(np.uint32)
        # Whoever comes last gives its whole block the result.
        here = np.ones(rows, np.bool_) if group.mask is None else group.mask.reshape(rows)
        blocks = np.repeat(here.any(axis=1), geometry.stride)
        write(np.repeat(result, geometry.stride), blocks)
        return None if through else GONE

    return step


@operation("membar", mods="cta gl sys", kind="control")
@operation("fence", mods="sc acq_rel cta gpu sys cluster proxy async alias", kind="control")
@operation("nanosleep", mods="u32", kind="control")
@operation("pmevent", mods="mask", kind="control")
@operation("griddepcontrol", mods="launch_dependents wait", kind="control", since=90)
@operation("setmaxnreg", mods="inc dec sync aligned u32", kind="control", since=90)
def nothing(b: Binder, ins: Instruction) -> Step:
    """Memory is sequentially consistent here, and time does not pass: nothing to do."""
    return lambda group: None
