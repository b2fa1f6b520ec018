"""Times work on a device: contenders in turn, several rounds, median and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.gpu.report import Report, Timing


class Clock(Protocol):
    """Measures how long work takes that a callable puts on a device."""

    def measure(self, work: Callable[[], Any], repeats: int) -> float:
        """Microseconds of one of `repeats` calls, from first to last."""
        ...


class WallClock:
    """Time on the wall; `wait` is called before each reading."""

    def __init__(self, wait: Callable[[], Any] = lambda: None) -> None:
        """Remember how to wait for the device."""
        self._wait = wait

    def measure(self, work: Callable[[], Any], repeats: int) -> float:
        """See `Clock.measure`."""
        self._wait()
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        self._wait()
        return (time.perf_counter() - begin) * 1e6 / repeats


class CupyClock:
    """Events on the current CuPy stream."""

    def __init__(self, cupy: Any) -> None:
        """Make the events."""
        self._cupy = cupy
        self._begin, self._end = cupy.cuda.Event(), cupy.cuda.Event()

    def measure(self, work: Callable[[], Any], repeats: int) -> float:
        """See `Clock.measure`."""
        self._begin.record()
        for _ in range(repeats):
            work()
        self._end.record()
        self._end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(self._begin, self._end)) * 1e3 / repeats


class TorchClock:
    """Events on PyTorch's current stream."""

    def __init__(self, torch: Any) -> None:
        """Make the events."""
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def measure(self, work: Callable[[], Any], repeats: int) -> float:
        """See `Clock.measure`."""
        self._begin.record()
        for _ in range(repeats):
            work()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1e3 / repeats


@dataclass(slots=True)
class Contender:
    """Work, the clock that fits it, and the stream that both stand in."""

    work: Callable[[], Any]
    clock: Clock
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    def measure(self, repeats: int) -> float:
        """Microseconds of one of `repeats` calls."""
        with self.context():
            return self.clock.measure(self.work, repeats)


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often everything is measured."""

    rounds: int = 9
    target_us: float = 3000.0
    warm_ups: int = 3


def race(
    report: Report,
    stage: str,
    work: str,
    contenders: Mapping[str, Contender],
    rounds: Rounds,
    *,
    floor_us: float | None = None,
    note: str = "",
) -> dict[str, float]:
    """Measure all contenders, a round of each in turn, and record them.

    Returns:
        Contender -> median microseconds.
    """
    repeats = {}
    for name, contender in contenders.items():
        contender.measure(rounds.warm_ups)
        once = contender.measure(1)
        repeats[name] = max(1, min(200, int(rounds.target_us / max(once, 1.0))))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds.rounds):
        for name, contender in contenders.items():
            samples[name].append(contender.measure(repeats[name]))
    medians = {}
    for name, values in samples.items():
        medians[name] = statistics.median(values)
        report.timings.append(
            Timing(stage, work, name, medians[name], _spread(values), floor_us, note)
        )
        of_floor = f", {floor_us / medians[name]:.2f} of the floor" if floor_us else ""
        print(f"  {work}: {name} {medians[name]:.1f} us{of_floor}", flush=True)
    return medians


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4)
    return quartiles[2] - quartiles[0]
