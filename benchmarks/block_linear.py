"""Time linear layers of the block pattern beside dense ones, at the shapes of all-MiniLM-L6-v2.

    python -m benchmarks.block_linear --rows 512

One thread, best CPU time of many rounds, the variants in turns. Results are compared first.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from minibert.batch import Batch
from minibert.ops.cpu import CpuOps
from minibert.ops.interface import Activation
from minibert.weights.masks import choose_mask

LAYERS: dict[str, tuple[int, int, Activation | None]] = {
    "qkv": (1152, 384, None),
    "attention_output": (384, 384, None),
    "intermediate": (1536, 384, "gelu"),
    "output": (384, 1536, None),
}
FRACTIONS = (0.0, 0.25, 0.5, 0.75)


def rows_of(ops: Any, values: Any) -> Any:
    """Values as an array of a stream, by looking each row up in a table."""
    count = np.arange(len(values), dtype=np.int32)
    zeros = np.zeros_like(count)
    bounds = np.array([0, len(values)], np.int32)
    batch = Batch(count, zeros, zeros, bounds, np.zeros(1, np.int32))
    return ops.embed(ops.upload(batch), (ops.prepare_embedding(values), None, None), None)


def time_layer(ops: CpuOps, shape: tuple[int, int, Activation | None], rows: int) -> list[float]:
    """Seconds of the dense layer, then of each fraction."""
    out_features, in_features, activation = shape
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
    bias = rng.standard_normal(out_features).astype(np.float32)
    hidden = rng.standard_normal((rows, in_features)).astype(np.float32)
    prepared = [ops.prepare_linear(weight, bias, name="dense")]
    for fraction in FRACTIONS:
        kept = weight * choose_mask(np.square(weight), "block", fraction)
        dense = ops.prepare_linear(kept, bias, name="dense")
        prepared.append(ops.prepare_linear(kept, bias, name="block", sparsity="block"))
        with ops.stream(alone=False) as stream:
            given = rows_of(stream, hidden)
            found, expected = (
                stream.download(stream.linear(given, one)) for one in (prepared[-1], dense)
            )
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    best = [float("inf")] * len(prepared)
    with ops.stream(alone=False) as stream:
        given = rows_of(stream, hidden)
        for _ in range(60):
            for i, one in enumerate(prepared):
                begin = time.thread_time()
                stream.linear(given, one, activation=activation)
                best[i] = min(best[i], time.thread_time() - begin)
    return best


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Time block-sparse linear layers.")
    parser.add_argument("--rows", type=int, default=512)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        ops = CpuOps("float32", threads=1)
        stack.callback(ops.close)
        print(f"{ops.path.name}, {arguments.rows} rows, one thread")
        print("| layer | dense, us | " + " | ".join(f"{f:.0%} left out" for f in FRACTIONS) + " |")
        print("|---|---|" + "---|" * len(FRACTIONS))
        total = np.zeros(1 + len(FRACTIONS))
        for name, shape in LAYERS.items():
            taken = np.array(time_layer(ops, shape, arguments.rows))
            total += taken
            ratios = " | ".join(f"{taken[0] / t:.2f}x" for t in taken[1:])
            print(f"| {name} | {1e6 * taken[0]:.0f} | {ratios} |")
        ratios = " | ".join(f"{total[0] / t:.2f}x" for t in total[1:])
        print(f"| all four | {1e6 * total[0]:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
