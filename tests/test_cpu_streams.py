"""CpuOps: streams, teams of threads, and their memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.kernels.cpu import cores
from minibert.ops.cpu import CpuArray, CpuOps
from minibert.ops.interface import ForwardShape
from tests.cpu_encoder import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    PATHS,
    WIDE,
    Encoder,
    needs_kernels,
    put,
    texts,
)


# ---- streams and threads -----------------------------------------------------------------------
@needs_kernels
def test_streams_in_several_threads_do_not_disturb_each_other(ops: CpuOps) -> None:
    encoder = Encoder(ops)
    batches = [pack(texts(seed, [5, 40, 3])) for seed in range(4)]
    expected = [encoder(ops, batch).tobytes() for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for turn in range(30):
            i = (index + turn) % len(batches)
            if encoder(ops, batches[i], alone=turn % 3 == 0).tobytes() != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_kernels
def test_more_threads_than_cores_are_not_started() -> None:
    made = CpuOps(threads=1000)
    assert made.threads == made.num_streams == cores.usable_cores()
    made.close()


@needs_kernels
def test_a_team_wider_than_the_machine_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = pack(texts(6, [40, 7]))
    single = CpuOps(threads=1)
    encoder = Encoder(single)
    monkeypatch.setattr("minibert.ops.cpu.usable_cores", lambda: 7)
    team = CpuOps()
    assert team.threads == 7
    for _ in range(20):
        assert encoder(team, batch, alone=True).tobytes() == encoder(single, batch).tobytes()
    single.close()
    team.close()


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads(ops: CpuOps) -> None:
    encoder = Encoder(ops)
    batch = pack(texts(7, [20, 3]))
    expected = encoder(ops, batch, alone=True).tobytes()
    pid = os.fork()
    if pid == 0:
        same = all(encoder(ops, batch, alone=True).tobytes() == expected for _ in range(3))
        ops.close()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert encoder(ops, batch, alone=True).tobytes() == expected


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_while_a_stream_is_taken_can_close(ops: CpuOps) -> None:
    with ops._pool._lock:
        pid = os.fork()
        if pid == 0:
            ops.close()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="limits on threads are Linux's")
def test_threads_that_the_system_refuses_are_done_without() -> None:
    """In a process whose stacks take more than it may map: the first threads start, or none."""
    code = (
        "import resource, threading, numpy as np\n"
        "from minibert.batch import pack\n"
        "from minibert.ops.cpu import CpuOps\n"
        "from tests.cpu_encoder import Encoder, texts\n"
        "import minibert.ops.cpu as cpu\n"
        "single = CpuOps(threads=1)\n"
        "encoder, batch = Encoder(single), pack(texts(5, [200, 40]))\n"
        "expected = encoder(single, batch).tobytes()\n"
        "cpu.usable_cores = lambda: 40\n"
        "mapped = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (mapped + (100 << 20),) * 2)\n"
        "team = CpuOps()\n"
        "for _ in range(3):\n"
        "    assert encoder(team, batch, alone=True).tobytes() == expected\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@needs_kernels
@pytest.mark.parametrize("isa", PATHS)
def test_the_rounding_that_a_thread_has_set_does_not_matter(isa: str) -> None:
    """Subnormals as zeros in the calling thread, in which a team then has a member."""
    import torch

    made = CpuOps(isa=isa, threads=2)
    weights = made.prepare_linear(np.full((16, 8), 1e-20, np.float32), None, name="test")
    hidden = np.full((64, 8), 1e-20, np.float32)
    found = []
    try:
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            for alone in (True, False):
                with made.stream(alone=alone) as running:
                    rows = running.linear(put(running, hidden), weights)
                    found.append(running.download(rows).tobytes())
    finally:
        torch.set_flush_denormal(False)
    made.close()
    assert len(set(found)) == 1
    # Products on tiles leave subnormals out by themselves.
    assert made.format != "float32" or np.frombuffer(found[0], np.float32).min() > 0


# ---- memory ------------------------------------------------------------------------------------
@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("isa", PATHS)
def test_steady_state_allocates_nothing_and_scratch_bytes_bounds_it(dtype: str, isa: str) -> None:
    made = CpuOps(dtype, isa=isa, threads=1)
    encoder = Encoder(made)
    largest = pack(texts(8, [150, 40, 10]))
    encoder(made, largest)
    with made.stream(alone=False) as running:
        state = running._state
        assert state is not None
        before = state.memory.total_bytes + made._native.stream_bytes(state.handle)
    for seed in range(5):
        encoder(made, pack(texts(seed, [100, 9, seed + 1])))
        encoder(made, largest)
    after = state.memory.total_bytes + made._native.stream_bytes(state.handle)
    assert after == before
    shape = ForwardShape(
        num_tokens=200,
        max_seqlen=150,
        num_seqs=3,
        hidden_size=HIDDEN,
        qkv_size=3 * HIDDEN,
        intermediate_size=WIDE,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
    )
    assert after <= made.scratch_bytes(shape)
    made.close()


class Pruned:
    """An encoder whose layers have their own numbers of heads and neurons, all of one head_dim."""

    hidden_size, head_dim = 96, 8

    def __init__(self, ops: Any, shapes: list[tuple[int, int]]) -> None:
        def linear(out_features: int, in_features: int) -> Any:
            weight = np.ones((out_features, in_features), np.float32)
            return ops.prepare_linear(weight, None, name="test")

        size = self.hidden_size
        self.table = ops.prepare_embedding(np.ones((4, size), np.float32))
        self.norm = ops.prepare_layer_norm(np.ones(size, np.float32), None, eps=1e-5)
        self.layers = [
            (
                heads,
                linear(3 * heads * self.head_dim, size),
                linear(size, heads * self.head_dim),
                linear(wide, size),
                linear(size, wide),
            )
            for heads, wide in shapes
        ]
        self.num_heads = max(heads for heads, _ in shapes)
        self.intermediate_size = max(wide for _, wide in shapes)

    def shape(self, num_tokens: int) -> ForwardShape:
        return ForwardShape(
            num_tokens=num_tokens,
            max_seqlen=num_tokens,
            num_seqs=1,
            hidden_size=self.hidden_size,
            qkv_size=3 * self.head_dim * self.num_heads,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
        )

    def __call__(self, ops: Any, batch: Any) -> tuple[Any, ...]:
        hidden = ops.embed(batch, [self.table, None, None], self.norm)
        for heads, qkv, output, up, down in self.layers:
            context = ops.attention(
                ops.linear(hidden, qkv),
                batch,
                num_heads=heads,
                head_dim=self.head_dim,
                softmax_scale=0.3,
            )
            hidden = ops.layer_norm(ops.linear(context, output, residual=hidden), self.norm)
            wide = ops.linear(hidden, up, activation="gelu")
            hidden = ops.layer_norm(ops.linear(wide, down, residual=hidden), self.norm)
        return (ops.pool(hidden, batch, "mean"),)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("isa", PATHS)
def test_scratch_bytes_bounds_layers_of_unlike_widths(dtype: str, isa: str) -> None:
    """As pruning leaves them; a team whose members take rows by themselves, and one thread."""
    rng = np.random.default_rng(9)
    num_tokens = 200  # more than each member takes alone
    for _ in range(2 if isa.endswith("-software") else 8):
        shapes = [(int(heads), int(wide)) for heads, wide in rng.integers(1, (13, 400), (6, 2))]
        made = CpuOps(dtype, isa=isa, threads=2)
        encoder = Pruned(made, shapes)
        bound = made.scratch_bytes(encoder.shape(num_tokens))
        results = []
        for alone in (True, False):
            with made.stream(alone=alone) as running:
                results += running.forward(pack([np.zeros(num_tokens, np.int32)]), encoder, key=0)
                state = running._state
                assert state is not None
                taken = state.memory.total_bytes + made._native.stream_bytes(state.handle)
            assert taken <= bound, (shapes, alone)
        assert results[0].tobytes() == results[1].tobytes()
        made.close()


@needs_kernels
def test_an_array_without_memory_says_only_that() -> None:
    class Full:
        def take(self, size: int) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        CpuArray(Full(), 4, 8)  # type: ignore[arg-type]


@needs_kernels
def test_arrays_give_their_memory_back(ops: CpuOps) -> None:
    with ops.stream(alone=False) as running:
        assert running._state is not None
        memory = running._state.memory
        first = CpuArray(memory, 4, 8)
        address = first.address
        assert address % 64 == 0
        del first
        assert CpuArray(memory, 2, 8).address == address
