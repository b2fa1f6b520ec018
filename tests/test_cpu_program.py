"""A recorded forward pass gives the bytes of its operators called one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.errors import InputError
from minibert.ops.cpu import CpuOps, available

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])

HIDDEN, WIDE, HEADS = 40, 72, 5


class Model:
    """All operators once, with results of both kinds, one of them asked for twice."""

    def __init__(self, ops: Any) -> None:
        rng = np.random.default_rng(0)

        def linear(out_features: int, in_features: int, name: str) -> Any:
            weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
            return ops.prepare_linear(weight, weight[:, 0], name=name)

        self.words = ops.prepare_embedding(rng.standard_normal((50, HIDDEN)).astype(np.float32))
        self.places = ops.prepare_embedding(rng.standard_normal((90, HIDDEN)).astype(np.float32))
        self.norm = ops.prepare_layer_norm(
            rng.standard_normal(HIDDEN).astype(np.float32), None, eps=1e-5
        )
        self.qkv = linear(3 * HIDDEN, HIDDEN, "qkv")
        self.up, self.down = linear(WIDE, HIDDEN, "up"), linear(HIDDEN, WIDE, "down")
        self.dense = linear(11, 3 * HIDDEN, "dense")

    def __call__(self, ops: Any, batch: Any) -> tuple[Any, ...]:
        hidden = ops.embed(batch, [self.words, self.places, None], self.norm)
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


@pytest.fixture
def ops() -> Iterator[CpuOps]:
    made = CpuOps(threads=2)
    yield made
    made.close()


def batch_of(seed: int, *seqlens: int) -> Any:
    rng = np.random.default_rng(seed)
    return pack([rng.integers(0, 50, n).astype(np.int32) for n in seqlens])


@pytest.mark.parametrize("alone", [True, False])
def test_bytes_are_those_of_the_operators_for_every_batch(ops: CpuOps, alone: bool) -> None:
    model = Model(ops)
    # Larger and smaller ones in turn: memory that an earlier batch left must not show.
    for seed, seqlens in enumerate([(3, 17), (1,), (60, 2, 33, 5), (1, 1, 1)]):
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
