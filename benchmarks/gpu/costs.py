"""What a launch costs the host, what a node of a graph costs the device, how fast L2 is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.gpu.clock import Clock, Contender, WallClock, race
from benchmarks.gpu.timings import Bench
from minibert.kernels.cuda.device import Graph
from minibert.kernels.cuda.launch import Launch

__all__ = ["graph_nodes", "host_launches", "l2_reads"]

SOURCE = str(Path(__file__).with_name("costs.cu"))
_BLOCK_SIZE = 256


def host_launches(bench: Bench) -> None:
    """Time of the host until the launch of an empty kernel returns, by its number of arguments."""
    device = bench.device
    stream = device.new_stream()
    address = device.to_device(np.zeros(1, np.int32))
    contenders = {}
    for count in (1, 8, 16):
        made = Launch(SOURCE, f"nothing_{count}_kernel", (1, 1, 1), 32)
        pointers = max(1, count // 2)
        arguments = [address] * pointers + [7] * (count - pointers)

        def work(made: Launch = made, arguments: list[object] = arguments) -> None:
            device.launch(made, *arguments)

        contenders[f"{count} arguments"] = Contender(work, WallClock(), lambda: device.use(stream))
    race(
        bench.report,
        "host cost",
        "one empty kernel",
        contenders,
        bench.rounds,
        note="time of the host until the call returns",
    )
    bench.report.skipped["launches with programmatic dependency"] = "CuPy cannot ask for them"


def graph_nodes(bench: Bench, nodes: int, grids: tuple[int, ...]) -> None:
    """A chain of empty kernels as one graph: device time, and host time of its launch."""
    device = bench.device
    stream = device.new_stream()
    address = device.to_device(np.zeros(1, np.int32))
    for blocks in grids:
        made = Launch(SOURCE, "nothing_1_kernel", (blocks, 1, 1), 32)

        def chain(made: Launch = made) -> None:
            for _ in range(nodes):
                device.launch(made, address)

        with device.use(stream):
            chain()  # compiles outside the capture
            graph = device.capture(stream, chain)

        def replay(graph: Graph = graph) -> None:
            graph.launch(stream)

        clocks: dict[str, Clock] = {"device": bench.clock, "host": WallClock()}
        race(
            bench.report,
            "host cost",
            f"graph of {nodes} empty kernels of {blocks} blocks",
            {
                name: Contender(replay, clock, lambda: device.use(stream))
                for name, clock in clocks.items()
            },
            bench.rounds,
            note=f"{nodes} nodes, one after the other",
        )


def l2_reads(bench: Bench, nbytes: int, passes: int) -> None:
    """Read a buffer that the second-level cache holds, over and over."""
    device = bench.device
    blocks = 4 * device.target.num_sms if passes > 1 else 2
    vectors = nbytes // 16
    buffer = device.to_device(np.ones(4 * vectors, np.uint32))
    out = device.view(device.empty(4 * blocks * _BLOCK_SIZE), 0, (blocks * _BLOCK_SIZE,), "<u4")
    stream = device.new_stream()
    made = Launch(SOURCE, "read_kernel", (blocks, 1, 1), _BLOCK_SIZE)

    def work() -> None:
        device.launch(made, out, buffer, vectors, passes)

    with device.use(stream):
        work()
    host = device.empty_pinned(out.nbytes)
    with device.use(stream):
        device.copy_out(host, out, stream)
        device.synchronize(stream)
    found = int(host.view(np.uint32).sum(dtype=np.int64))
    expected = 4 * vectors * passes
    bench.report.check("peaks", "L2 reads", found == expected, f"sum {found}, expected {expected}")
    race(
        bench.report,
        "peaks",
        "L2 reads",
        {"this device": Contender(work, bench.clock, lambda: device.use(stream))},
        bench.rounds,
        note=f"{nbytes * passes / 1e9:.3f} GB in {passes} passes over {nbytes / 1e6:.0f} MB",
    )
