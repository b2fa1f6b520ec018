"""Where one core's time goes: each operator's share of a forward pass, and what it reaches.

    python -m benchmarks.operators build/models/all-MiniLM-L6-v2

One thread, best CPU time of each operator over many passes; float32 and int8 in turns, so that a
machine whose speed changes treats both alike. The operators run one by one here and not as the
recorded program, which is the same kernels called without Python between them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ceilings
from minibert import model
from minibert.batch import pack
from minibert.cli.machine import cpu_features
from minibert.loading import LoadedModel, load_model
from minibert.ops.cpu import CpuOps
from minibert.pooling import apply_steps, prepare_steps

DTYPES = ("float32", "int8")
SHAPES = ((50, 10), (8, 64), (2, 256), (1, 19))
"""Texts and tokens of each."""


class Timed:
    """A stream whose operators note the least CPU time that each call of a pass took."""

    def __init__(self, ops: CpuOps) -> None:
        """Nothing is noted yet."""
        self._ops = ops
        self._calls: dict[int, tuple[str, float]] = {}
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        """An operator, or whatever else the stream has."""
        found = getattr(self._ops, name)
        return self._noting(name, found) if callable(found) else found

    def begin(self) -> None:
        """A pass begins: its calls are those of the pass before, in the same order."""
        self._next = 0

    def seconds(self) -> dict[str, float]:
        """Kind of operator -> seconds of a pass."""
        found: dict[str, float] = defaultdict(float)
        for name, taken in self._calls.values():
            found[name] += taken
        return found

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            begin = time.thread_time()
            result = call(*arguments, **options)
            taken = time.thread_time() - begin
            _, least = self._calls.get(self._next, (name, float("inf")))
            self._calls[self._next] = (name, min(least, taken))
            self._next += 1
            return result

        return noted


def operations(loaded: LoadedModel, num_seqs: int, seqlen: int) -> float:
    """Multiplications and additions of the linear layers."""
    config = loaded.config
    per_layer = 4 * config.hidden_size + 2 * config.intermediate_size
    return 2.0 * num_seqs * seqlen * config.num_hidden_layers * config.hidden_size * per_layer


def measure(
    loaded: LoadedModel,
    num_seqs: int,
    seqlen: int,
    passes: int,
    makers: Mapping[str, Callable[[], CpuOps]],
) -> dict[str, dict[str, float]]:
    """Name -> kind of operator -> seconds of one pass, by the ops that `makers` make."""
    rng = np.random.default_rng(0)
    texts = [
        rng.integers(0, loaded.config.vocab_size, seqlen).astype(np.int32) for _ in range(num_seqs)
    ]
    batch = pack(texts, first_position=loaded.config.first_position)
    found: dict[str, Timed] = {}
    running: list[Callable[[], None]] = []
    kept: list[CpuOps] = []
    for name, make in makers.items():
        ops = make()
        kept.append(ops)
        parameters = model.prepare(ops, loaded.weights, loaded.config)
        steps = prepare_steps(ops, loaded.steps)
        timed = Timed(ops)

        def one_pass(ops=ops, parameters=parameters, steps=steps, timed=timed) -> None:  # type: ignore[no-untyped-def]
            with ops.stream(alone=True) as stream:
                timed._ops = stream
                timed.begin()
                uploaded = stream.upload(batch)
                states = model.encode(timed, uploaded, parameters, loaded.config)
                apply_steps(timed, states, uploaded, steps)

        found[name] = timed
        running.append(one_pass)
    for _ in range(passes):
        for one in running:
            one()
    for ops in kept:
        ops.close()
    return {name: timed.seconds() for name, timed in found.items()}


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--passes", type=int, default=60)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        peaks = ceilings.measure(cpu_features() or (), threads=1, scratch=Path(scratch))
    makers = {dtype: partial(CpuOps, dtype, threads=1) for dtype in DTYPES}
    best = {dtype: ceilings.ceiling(peaks, dtype) for dtype in DTYPES}
    print("one thread; " + ", ".join(f"{n} {v['per_s'] / 1e9:.1f} G/s" for n, v in peaks.items()))
    print("\n| texts | dtype | ms | tokens/s | linear layers, of peak | linear | attention "
          "| layer_norm | embed, pool |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for num_seqs, seqlen in SHAPES:
        found = measure(loaded, num_seqs, seqlen, arguments.passes, makers)
        for dtype, seconds in found.items():
            total = sum(seconds.values())
            rate = operations(loaded, num_seqs, seqlen) / seconds["linear"]
            peak = best[dtype]
            reached = "" if peak is None else f"{rate / peak[1]:.2f}"
            named = [seconds[name] for name in ("linear", "attention", "layer_norm")]
            shares = " | ".join(f"{100 * s / total:.1f} %" for s in [*named, total - sum(named)])
            speed = f"{1e3 * total:.2f} | {num_seqs * seqlen / total:,.0f}"
            print(f"| {num_seqs} x {seqlen} | {dtype} | {speed} | {reached} | {shares} |")


if __name__ == "__main__":
    main()
