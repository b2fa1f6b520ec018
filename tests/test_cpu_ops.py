"""CpuOps: streams, threads, memory, choice of path, and a whole encoder in any batch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.batch import Batch, pack
from minibert.errors import DeviceError, DeviceOptionError, InputError
from minibert.kernels.cpu import cores, loader
from minibert.ops.cpu import CpuArray, CpuOps, available, linear_format
from minibert.ops.interface import ForwardShape
from minibert.ops.reference import ReferenceOps
from minibert.ops.select import make_ops

BUILT, REASON = available()
needs_kernels = pytest.mark.skipif(not BUILT, reason=REASON)
PATHS = [path.name for path in loader.all_paths() if path.supported] if BUILT else []
HEADS, HEAD_DIM, HIDDEN, WIDE, LAYERS = 3, 16, 48, 112, 2


class Encoder:
    """A small encoder with random weights, over any Ops."""

    def __init__(self, ops: Any) -> None:
        rng = np.random.default_rng(0)

        def array(*shape: int) -> Any:
            return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

        def norm() -> Any:
            return ops.prepare_layer_norm(1 + array(HIDDEN), array(HIDDEN), eps=1e-12)

        def linear(out_features: int, in_features: int) -> Any:
            weight = array(out_features, in_features)
            return ops.prepare_linear(weight, array(out_features), name="test")

        self.tables = [ops.prepare_embedding(array(n, HIDDEN)) for n in (100, 600, 2)]
        self.norm = norm()
        self.layers = [
            (
                linear(3 * HIDDEN, HIDDEN),
                linear(HIDDEN, HIDDEN),
                norm(),
                linear(WIDE, HIDDEN),
                linear(HIDDEN, WIDE),
                norm(),
            )
            for _ in range(LAYERS)
        ]

    def __call__(self, ops: Any, batch: Batch, *, alone: bool = False) -> Any:
        with ops.stream(alone=alone) as running:
            uploaded = running.upload(batch)
            hidden = running.embed(uploaded, self.tables, self.norm)
            for qkv, output, norm, up, down, last_norm in self.layers:
                context = running.attention(
                    running.linear(hidden, qkv),
                    uploaded,
                    num_heads=HEADS,
                    head_dim=HEAD_DIM,
                    softmax_scale=HEAD_DIM**-0.5,
                )
                hidden = running.layer_norm(running.linear(context, output, residual=hidden), norm)
                wide = running.linear(hidden, up, activation="gelu")
                hidden = running.layer_norm(running.linear(wide, down, residual=hidden), last_norm)
            return running.download(running.normalize(running.pool(hidden, uploaded, "mean")))


def texts(seed: int, seqlens: list[int]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 100, n).astype(np.int32) for n in seqlens]


def hidden_on(running: Any, rows: Any) -> CpuArray:
    """Rows as an operator's result."""
    out = CpuArray(running._state.memory, *rows.shape)
    running._native.copy_columns(out.address, out.cols, 0, rows, out.cols, out.rows)
    return out


@pytest.fixture
def ops() -> Iterator[CpuOps]:
    made = CpuOps(threads=2)
    yield made
    made.close()


# ---- results -----------------------------------------------------------------------------------
@needs_kernels
@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_a_text_has_the_same_bytes_alone_in_any_batch_and_order(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    made = CpuOps(dtype, isa=isa)
    encoder = Encoder(made)
    sequences = texts(2, [1, 2, 5, 9, 30, 31, 64, 100, 257])
    expected = [encoder(made, pack([ids])).tobytes() for ids in sequences]
    for _ in range(6):
        chosen = rng.permutation(len(sequences))[: rng.integers(1, len(sequences) + 1)]
        batch = pack([sequences[i] for i in chosen])
        for alone in (False, True):
            rows = encoder(made, batch, alone=alone)
            assert [row.tobytes() for row in rows] == [expected[i] for i in chosen]
    made.close()


@needs_kernels
@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_encoder_is_as_close_to_float64_as_its_precision_says(isa: str, precision: str) -> None:
    exact_ops, plain_ops = ReferenceOps("float64"), ReferenceOps("float32")
    batch = pack(texts(3, [3, 50, 17, 200]))
    exact = Encoder(exact_ops)(exact_ops, batch)
    plain = np.abs(Encoder(plain_ops)(plain_ops, batch) - exact).max()
    made = CpuOps(matmul_precision=precision, isa=isa)
    error = np.abs(Encoder(made)(made, batch) - exact).max()
    made.close()
    # Operands of one and two bfloat16 parts are off by 2^-9 and 2^-17 of a value: that many times
    # the 2^-25 of float32, and what the other products drop, which is as much again.
    factor = {"float32": 1, "bfloat16x6": 1, "bfloat16x3": 2 * 2**8, "bfloat16x1": 2 * 2**16}
    assert error <= 2 * factor[made.format] * plain + 2.0**-24


@needs_kernels
def test_int8_keeps_the_direction_of_every_vector() -> None:
    exact_ops = ReferenceOps("float64")
    batch = pack(texts(4, [3, 50, 17, 200]))
    exact = Encoder(exact_ops)(exact_ops, batch)
    made = CpuOps("int8")
    cosines = (Encoder(made)(made, batch) * exact).sum(axis=1)
    made.close()
    assert cosines.min() >= 0.995  # what the project asks of int8


@needs_kernels
@pytest.mark.parametrize(
    "isas",
    [
        [n for n in PATHS if n in ("avx2", "avx512")],
        [n for n in PATHS if n not in ("avx2", "avx512")],
    ],
    ids=["127 steps", "255 steps"],
)
def test_paths_with_the_same_steps_give_the_same_int8_sums(isas: list[str]) -> None:
    # One linear layer without activation is free of rounding that differs between paths.
    if not isas:
        pytest.skip("no such path here")
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((70, 200)).astype(np.float32)
    tables = [rng.standard_normal((100, 200)).astype(np.float32)]
    results = set()
    for isa in isas:
        made = CpuOps("int8", isa=isa)
        prepared = made.prepare_linear(weight, None, name="test")
        embedding = made.prepare_embedding(tables[0])
        with made.stream(alone=False) as running:
            hidden = running.embed(
                running.upload(pack(texts(5, [40]))), [embedding, None, None], None
            )
            results.add(running.download(running.linear(hidden, prepared)).tobytes())
        made.close()
    assert len(results) == 1


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
        "from tests.test_cpu_ops import CpuOps, Encoder, pack, texts\n"
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
    torch = pytest.importorskip("torch")
    made = CpuOps(isa=isa, threads=2)
    weights = made.prepare_linear(np.full((16, 8), 1e-20, np.float32), None, name="test")
    hidden = np.full((64, 8), 1e-20, np.float32)
    found = []
    try:
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            for alone in (True, False):
                with made.stream(alone=alone) as running:
                    rows = running.linear(hidden_on(running, hidden), weights)
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


# ---- refusals ----------------------------------------------------------------------------------
@needs_kernels
def test_calls_outside_a_stream_and_after_close_are_refused(ops: CpuOps) -> None:
    with ops.stream(alone=False) as running:
        rows = CpuArray(running._state.memory, 1, 8)  # type: ignore[union-attr]
    with pytest.raises(DeviceError, match=r"inside `with ops.stream"):
        ops.normalize(rows)
    ops.close()
    with pytest.raises(DeviceError, match="was closed"):
        with ops.stream(alone=False):
            pass


@needs_kernels
def test_arguments_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"dtype must be one of float32, .*got 'float8'"):
        CpuOps("float8")
    with pytest.raises(DeviceError, match="matmul_precision must be one of highest, high, medium"):
        CpuOps(matmul_precision="low")
    with pytest.raises(DeviceError, match="threads must be at least 1, got 0"):
        CpuOps(threads=0)
    monkeypatch.setenv(loader.ISA_VARIABLE, "sse9")
    with pytest.raises(DeviceError, match=r"MINIBERT_CPU_ISA must be one of .*, got 'sse9'"):
        CpuOps()
    assert available() == (False, available()[1])
    for device in ("cpu", "auto"):  # not NumPy, which would be slow and say nothing
        with pytest.raises(DeviceOptionError, match=r"MINIBERT_CPU_ISA must be one of"):
            make_ops(device)
    with pytest.raises(DeviceError, match=r"^isa must be one of .*, got 'sse10'"):
        CpuOps(isa="sse10")


@needs_kernels
def test_shapes_that_do_not_fit_are_refused(ops: CpuOps) -> None:
    weights = ops.prepare_linear(np.zeros((4, 8), np.float32), None, name="test")
    norm = ops.prepare_layer_norm(np.ones(8, np.float32), None, eps=1e-5)
    with ops.stream(alone=False) as running:
        assert running._state is not None
        memory = running._state.memory
        batch = running.upload(pack(texts(9, [2])))
        nine = CpuArray(memory, 2, 9)
        with pytest.raises(InputError, match="hidden must have 8 columns, got 9"):
            running.linear(nine, weights)
        with pytest.raises(InputError, match=r"residual must be \(2, 4\)"):
            running.linear(CpuArray(memory, 2, 8), weights, residual=nine)
        with pytest.raises(InputError, match="hidden must have 8 columns, got 9"):
            running.layer_norm(nine, norm)
        with pytest.raises(InputError, match="qkv must have 24 columns"):
            running.attention(nine, batch, num_heads=1, head_dim=8, softmax_scale=1.0)
        with pytest.raises(InputError, match="head_dim must be a multiple of 8"):
            running.attention(nine, batch, num_heads=1, head_dim=3, softmax_scale=1.0)
        with pytest.raises(InputError, match="softmax_scale must be positive"):
            running.attention(nine, batch, num_heads=1, head_dim=8, softmax_scale=0.0)
        with pytest.raises(InputError, match="hidden must have 2 rows, got 3"):
            running.pool(CpuArray(memory, 3, 8), batch, "mean")
        with pytest.raises(InputError, match="arrays must have equal rows"):
            running.concatenate([nine, CpuArray(memory, 3, 1)])


@needs_kernels
def test_weights_whose_parts_do_not_fit_are_refused(ops: CpuOps) -> None:
    ones = np.ones((16, 8), np.float32)
    with pytest.raises(InputError, match=r"bias of test must be \(16,\), got \(3,\)"):
        ops.prepare_linear(ones, ones[0, :3], name="test")
    with pytest.raises(InputError, match=r"of one size, got \(\(8,\), \(3,\)\)"):
        ops.prepare_layer_norm(ones[0], ones[0, :3], eps=1e-5)
    wide, narrow = ops.prepare_embedding(ones), ops.prepare_embedding(np.ones((16, 4), np.float32))
    norm = ops.prepare_layer_norm(ones[0, :4], None, eps=1e-5)
    batch = pack(texts(9, [2]))
    for tables, of_four in (([wide, narrow, None], None), ([wide, None, None], norm)):
        with ops.stream(alone=False) as running:
            with pytest.raises(InputError, match=r"must be of one width, .* got \[8, 4\]"):
                running.embed(running.upload(batch), tables, of_four)
            with pytest.raises(InputError, match=r"must be of one width, .* got \[8, 4\]"):
                running.forward(
                    batch, lambda ops, b, t=tables, n=of_four: (ops.embed(b, t, n),), key="wrong"
                )


@needs_kernels
def test_weights_too_large_for_float16_are_refused_by_name() -> None:
    weight = np.ones((16, 8), np.float32)
    half = CpuOps("float16")
    weight[3, 2] = -65504.0
    half.prepare_linear(weight, None, name="fits")
    weight[3, 2] = -65520.0
    with pytest.raises(DeviceError, match="high must fit float16, its largest value is 65520"):
        half.prepare_linear(weight, None, name="high")
    CpuOps("bfloat16").prepare_linear(weight, None, name="high")


# ---- choosing a path and a format --------------------------------------------------------------
@needs_kernels
@pytest.mark.parametrize("isa", PATHS)
def test_the_environment_forces_a_path(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loader.ISA_VARIABLE, isa)
    assert CpuOps().path.name == isa
    assert available() == (True, f"path {isa}")


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="they are of x86-64")
def test_paths_in_software_are_in_the_build_under_test() -> None:
    wanted = {f"{path}-software" for path in ("avx2-vnni", "avx512-vnni", "amx", "neon-bf16")}
    assert wanted <= {path.name for path in loader.all_paths()}, (
        "build with MINIBERT_SOFTWARE_PATHS=1, as `make test` does: without, less is tested"
    )


@needs_kernels
def test_software_paths_are_never_chosen_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loader.ISA_VARIABLE, raising=False)
    assert not CpuOps().path.name.endswith("-software")


def test_formats_by_dtype_and_precision() -> None:
    vectors = ("float32", "bfloat16", "float16", "int8")
    tiles = (*vectors, "bfloat16x1", "bfloat16x3", "bfloat16x6")
    for precision in ("highest", "high", "medium"):
        assert linear_format("float32", precision, vectors) == "float32"
    assert linear_format("float32", "highest", tiles) == "bfloat16x6"
    assert linear_format("float32", "high", tiles) == "bfloat16x3"
    assert linear_format("float32", "medium", tiles) == "bfloat16x1"
    assert linear_format("bfloat16", "highest", vectors) == "bfloat16"
    assert linear_format("bfloat16", "highest", tiles) == "bfloat16x1"
    assert linear_format("int8", "highest", tiles) == "int8"
    with pytest.raises(DeviceError, match="dtype int8 is not supported on this path"):
        linear_format("int8", "highest", ("float32",))


def test_without_the_extension_the_module_imports_and_says_why() -> None:
    code = (
        "import sys; sys.modules['minibert.kernels.cpu._native'] = None\n"
        "from minibert.ops.cpu import CpuOps, available\n"
        "from minibert.errors import DeviceError\n"
        "built, reason = available()\n"
        "assert not built and 'compiler' in reason, reason\n"
        "try: CpuOps()\n"
        "except DeviceError as error: assert 'compiler' in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- cores -------------------------------------------------------------------------------------
def test_cores_respect_the_affinity_mask() -> None:
    assert 1 <= cores.usable_cores() <= len(os.sched_getaffinity(0))


def test_cgroup_quota_is_the_tightest_of_the_hierarchy(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    mount = tmp_path / "mount"
    (mount / "outer" / "inner").mkdir(parents=True)
    assert cores.cgroup_quota(mount, membership) is None
    (mount / "outer" / "cpu.max").write_text("150000 100000\n")
    (mount / "outer" / "inner" / "cpu.max").write_text("max 100000\n")
    assert cores.cgroup_quota(mount, membership) == 1.5
    (mount / "cpu.max").write_text("50000 100000\n")
    assert cores.cgroup_quota(mount, membership) == 0.5


def test_cgroup_version_1(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    folder = tmp_path / "cpu,cpuacct"
    folder.mkdir()
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores.cgroup_quota(tmp_path, membership) is None
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    assert cores.cgroup_quota(tmp_path, membership) == 2.0
