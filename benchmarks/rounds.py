"""Rounds and their statistics: rotating order, disturbed samples left out, medians and spread."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

DISTURBED_ABOVE = 0.10
"""Share of the cores' time that other processes may take from a sample."""

FEWEST_CLEAN = 3

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender in one round.

    Attributes:
        seconds: of each call.
        foreign: share of all cores' time that went to other processes; None where unknown.
        ceiling: operations a second that the cores reached just before; None where unknown.
    """

    seconds: tuple[float, ...]
    foreign: float | None
    ceiling: float | None = None

    @property
    def clean(self) -> bool:
        """Whether other processes left it alone, as far as is known."""
        return self.foreign is None or self.foreign <= DISTURBED_ABOVE

    @property
    def total_s(self) -> float:
        """Seconds of all calls."""
        return sum(self.seconds)


Round = dict[str, Sample]
"""Contender -> its sample; one that failed is missing."""


def rotated(items: Sequence[_Item], by: int) -> list[_Item]:
    """The items, starting further on each round, so that none is always first."""
    if not items:
        return []
    by %= len(items)
    return [*items[by:], *items[:by]]


def clean_count(rounds: Sequence[Round], key: str, baseline: str) -> int:
    """Rounds in which neither the contender nor the baseline was disturbed."""
    return len(_usable(rounds, key, baseline, clean=True))


def summarise(
    rounds: Sequence[Round], key: str, baseline: str, *, amount: float
) -> dict[str, Any] | None:
    """Rate and ratio of a contender over its undisturbed rounds.

    Where fewer than `FEWEST_CLEAN` rounds, or fewer than all if there were less, were undisturbed,
    all are used and the summary says `disturbed`.

    Args:
        rounds: of one workload.
        key: the contender.
        baseline: whose time in the same round the ratio refers to.
        amount: what one round handles, in tokens (or calls).

    Returns:
        `per_s`, `ratio` and `per_ceiling` (median, low, high), `rounds`, `left_out`, `disturbed`;
        None without a single sample. `per_ceiling` is what was handled for each operation that the
        cores could have done. `ratio` is None where the baseline has no sample, `per_ceiling` where
        no ceiling is known.
    """
    mine = [entry[key] for entry in rounds if key in entry]
    if not mine:
        return None
    used = _usable(rounds, key, baseline, clean=True)
    disturbed = len(used) < min(FEWEST_CLEAN, len(mine))
    if disturbed:
        used = _usable(rounds, key, baseline, clean=False)
    ratios = [e[baseline].total_s / e[key].total_s for e in used if baseline in e]
    shares = [
        amount / entry[key].total_s / ceiling
        for entry in used
        if (ceiling := entry[key].ceiling) is not None
    ]
    return {
        "per_s": spread([amount / entry[key].total_s for entry in used]),
        "ratio": spread(ratios) if ratios else None,
        "per_ceiling": spread(shares) if shares else None,
        "rounds": len(used),
        "left_out": len(mine) - len(used),
        "disturbed": disturbed,
    }


def _usable(rounds: Sequence[Round], key: str, baseline: str, *, clean: bool) -> list[Round]:
    return [
        entry
        for entry in rounds
        if key in entry
        and (not clean or (entry[key].clean and (baseline not in entry or entry[baseline].clean)))
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of at least one value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    place = int(np.ceil(percent / 100 * len(ordered))) - 1
    return ordered[max(0, place)]


def cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each pair of rows, (num_texts,); not a number where a vector is not finite."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.einsum("ij,ij->i", a, b) / norms)


class Meter:
    """Tells which share of the cores' time other processes took since it was started."""

    def __init__(self, pid: int) -> None:
        """Start.

        Args:
            pid: the process that is measured; its time, and this one's, is not foreign.
        """
        self._pid = pid
        self._begin = self._read()

    def foreign(self) -> float | None:
        """The share, from 0 to 1; None where /proc does not tell."""
        begin, end = self._begin, self._read()
        if begin is None or end is None:
            return None
        cores = os.cpu_count() or 1
        elapsed = max(end[0] - begin[0], 1e-9)
        return max(0.0, (end[1] - begin[1]) - (end[2] - begin[2])) / (elapsed * cores)

    def _read(self) -> tuple[float, float, float] | None:
        """Clock, busy seconds of the machine, seconds of our own processes."""
        try:
            busy = busy_seconds(Path("/proc/stat").read_text(encoding="ascii"))
            own = process_seconds(Path(f"/proc/{self._pid}/stat").read_text(encoding="utf-8"))
        except (OSError, ValueError, IndexError):
            return None
        times = os.times()
        return time.monotonic(), busy, own + times.user + times.system


def busy_seconds(stat: str) -> float:
    """Seconds that all cores have worked, from /proc/stat; time stolen by a hypervisor counts."""
    fields = [int(value) for value in stat.splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_seconds(stat: str) -> float:
    """Seconds that a process and its threads have worked, from /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
