"""A recorded forward pass gives the bytes of its operators called one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.errors import InputError
from minibert.ops.cpu import CpuOps
from tests.cpu_encoder import needs_kernels
from tests.threads import needs_tasks, threads

pytestmark = needs_kernels

HIDDEN, WIDE, HEADS = 40, 72, 5


class Model:
    """All operators once, with results of both kinds, one of them asked for twice."""

    def __init__(self, ops: Any) -> None:
        rng = np.random.default_rng(0)

        def linear(out_features: int, in_features: int, name: str) -> Any:
            weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
            return ops.prepare_linear(weight, weight[:, 0], name=name)

        self.words = ops.prepare_embedding(rng.standard_normal((50, HIDDEN)).astype(np.float32))
        self.places = ops.prepare_embedding(rng.standard_normal((500, HIDDEN)).astype(np.float32))
        self.norm = ops.prepare_layer_norm(
            rng.standard_normal(HIDDEN).astype(np.float32), None, eps=1e-5
        )
        self.qkv = linear(3 * HIDDEN, HIDDEN, "qkv")
        self.up, self.down = linear(WIDE, HIDDEN, "up"), linear(HIDDEN, WIDE, "down")
        self.dense = linear(11, 3 * HIDDEN, "dense")

    def __call__(self, ops: Any, batch: Any) -> tuple[Any, ...]:
        hidden = ops.embed(batch, [self.words, self.places, None], self.norm)
        for _ in range(2):  # so that values of unlike widths take turns between two attentions
            context = ops.attention(
                ops.linear(hidden, self.qkv),
                batch,
                num_heads=HEADS,
                head_dim=HIDDEN // HEADS,
                softmax_scale=0.3,
            )
            wide = ops.linear(context, self.up, activation="gelu")
            hidden = ops.layer_norm(ops.linear(wide, self.down, residual=hidden), self.norm)
        pooled = [ops.pool(hidden, batch, mode) for mode in ("cls", "mean", "max")]
        joined = ops.concatenate(pooled)
        small = ops.normalize(ops.linear(joined, self.dense, activation="tanh"))
        return small, hidden, small, pooled[1]


@pytest.fixture(params=["float32", "bfloat16", "int8"])
def ops_of_all_dtypes(request: Any) -> Iterator[CpuOps]:
    made = CpuOps(request.param, threads=3)
    yield made
    made.close()


def batch_of(seed: int, *seqlens: int) -> Any:
    rng = np.random.default_rng(seed)
    return pack([rng.integers(0, 50, n).astype(np.int32) for n in seqlens])


@pytest.mark.parametrize("alone", [True, False])
def test_bytes_are_those_of_the_operators_for_every_batch(
    ops_of_all_dtypes: CpuOps, alone: bool
) -> None:
    ops = ops_of_all_dtypes
    model = Model(ops)
    # Larger and smaller ones in turn: memory that an earlier batch left must not show. From 7 or 16
    # rows for each of three threads on, a thread takes its own rows through several operators.
    sizes = [(3, 17), (1,), (60, 2, 33, 5), (21,), (1, 1, 1), (48,), (49, 1), (500, 101), (47,)]
    for seed, seqlens in enumerate(sizes):
        batch = batch_of(seed, *seqlens)
        with ops.stream(alone=alone) as running:
            uploaded = running.upload(batch)
            expected = [running.download(array) for array in model(running, uploaded)]
        with ops.stream(alone=alone) as running:
            results = running.forward(batch, model, key="model")
        assert [r.tobytes() for r in results] == [e.tobytes() for e in expected]
        assert [r.shape for r in results] == [e.shape for e in expected]


def test_each_key_is_recorded_once(ops: CpuOps) -> None:
    model = Model(ops)
    calls = []

    def counted(recorder: Any, batch: Any) -> tuple[Any, ...]:
        calls.append(batch)
        return model(recorder, batch)

    with ops.stream(alone=False) as running:
        for seed in range(3):
            running.forward(batch_of(seed, 4), counted, key="one")
        running.forward(batch_of(0, 4), counted, key="two")
    assert len(calls) == 2


def test_an_id_outside_its_table_is_named_and_the_next_batch_runs(ops: CpuOps) -> None:
    model = Model(ops)
    good, bad = batch_of(0, 4), batch_of(0, 4)
    bad.input_ids[2] = 50
    with ops.stream(alone=False) as running:
        expected = running.forward(good, model, key="model")
        with pytest.raises(InputError, match="input_ids must be from 0 to 49, got 50 at token 2"):
            running.forward(bad, model, key="model")
        again = running.forward(good, model, key="model")
    assert [r.tobytes() for r in again] == [e.tobytes() for e in expected]


def test_what_does_not_fit_is_refused_while_recording(ops: CpuOps) -> None:
    model = Model(ops)

    def wrong(recorder: Any, batch: Any) -> tuple[Any, ...]:
        hidden = recorder.embed(batch, [model.words, model.places, None], None)
        return (recorder.linear(hidden, model.down),)

    def pooled_twice(recorder: Any, batch: Any) -> tuple[Any, ...]:
        hidden = recorder.embed(batch, [model.words, model.places, None], None)
        return (recorder.pool(recorder.pool(hidden, batch, "cls"), batch, "cls"),)

    with ops.stream(alone=False) as running:
        with pytest.raises(InputError, match="hidden must have 72 columns, got 40"):
            running.forward(batch_of(0, 4), wrong, key="wrong")
        with pytest.raises(InputError, match="a row for each token"):
            running.forward(batch_of(0, 4), pooled_twice, key="pooled")


def test_a_batch_that_is_expected_gives_the_same_bytes(ops: CpuOps) -> None:
    model = Model(ops)
    ops.expect_batch()  # no team yet
    batch = batch_of(0, 40)
    results = []
    for pause in (0.0, 0.02, 0.0):  # threads that spin, and that sleep
        time.sleep(pause)
        ops.expect_batch()
        with ops.stream(alone=True) as running:
            ops.expect_batch()  # it is taken
            results.append(running.forward(batch, model, key="model")[1].tobytes())
    assert len(set(results)) == 1
    ops.close()
    ops.expect_batch()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_wakes_no_threads_of_its_parent(ops: CpuOps) -> None:
    with ops.stream(alone=True) as running:
        running.forward(batch_of(0, 40), Model(ops), key="model")
    child = os.fork()
    if child == 0:
        ops.expect_batch()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@needs_tasks
def test_an_expected_batch_finds_threads_awake(ops: CpuOps) -> None:
    """Those of a team sleep half a millisecond after their last work."""
    before = threads()
    with ops.stream(alone=True) as running:
        running.forward(batch_of(0, 40), Model(ops), key="model")
    (thread,) = threads() - before

    def switches() -> int:
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    time.sleep(0.1)
    asleep = switches()
    ops.expect_batch()
    until = time.monotonic() + 10
    while switches() == asleep and time.monotonic() < until:
        time.sleep(0.01)
    assert switches() > asleep  # it woke, found nothing, and sleeps again
