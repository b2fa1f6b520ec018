"""Several devices share the batches: no byte changes, none stays open, none is preferred."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine
from minibert.errors import DeviceError, DeviceMemoryError, EngineClosedError, InputError
from minibert.kernels.cuda import device as devices
from minibert.ops import select
from minibert.ops.cuda import CudaOps
from minibert.slots import Slots
from tests.conftest import TinyModel
from tests.kernels.cuda.fake_cupy import FakeCupy

TEXTS = [f"the cat {'sat on the mat ' * (i % 3)}" for i in range(10)]
TWO = ["emulator", "emulator"]
SHAPE = {"num_hidden_layers": 1}


def load(folder: Path, **options: Any) -> Engine:
    return Engine.from_pretrained(folder, dtype="float16", **options)


def test_two_devices_give_the_bytes_of_one_in_order(tiny: TinyModel) -> None:
    folder = tiny("bert", **SHAPE)
    with load(folder, device="emulator") as one:
        expected = one.encode(TEXTS, batch_size=2)
        states = one.encode(TEXTS, output_value="token_embeddings")
    with load(folder, devices=TWO) as both:
        assert np.array_equal(both.encode(TEXTS, batch_size=2), expected)
        assert both._runner.batches[0] + both._runner.batches[1] == 5
        assert min(both._runner.batches) >= 1
        report = both.explain()
        assert "2 x emulator (asked for: emulator, emulator), float16; " in report
        assert "1 at once on each device" in report
        found = both.encode(TEXTS, output_value="token_embeddings")
        assert all(np.array_equal(a, b) for a, b in zip(found, states, strict=True))


def test_a_slow_device_gets_fewer_batches(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny("bert", **SHAPE), devices=TWO) as engine:
        slow = engine._runner.models[0].ops.device  # type: ignore[attr-defined]
        plain, release = CudaOps.forward, threading.Event()

        def forward(self: CudaOps, *rest: Any, **options: Any) -> Any:
            if self.device is slow:
                release.wait(60.0)
            elif engine._runner.batches[1] == 8:
                release.set()
            return plain(self, *rest, **options)

        monkeypatch.setattr(CudaOps, "forward", forward)
        engine.encode(TEXTS, batch_size=1)
        assert engine._runner.batches == [1, 9]


def test_calls_from_several_threads_share_the_devices(tiny: TinyModel) -> None:
    with load(tiny("bert", **SHAPE), devices=TWO) as engine:
        expected = [engine.encode(text) for text in TEXTS[:4]]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(engine.encode, TEXTS[:4]))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_error_on_one_device_reaches_the_caller_and_the_engine_goes_on(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(tiny("bert", **SHAPE), devices=TWO) as engine:
        broken = engine._runner.models[1].ops.device  # type: ignore[attr-defined]
        plain = CudaOps.forward

        def forward(self: CudaOps, *rest: Any, **options: Any) -> Any:
            if self.device is broken:
                raise RuntimeError("an illegal address")
            return plain(self, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(CudaOps, "forward", forward)
            with pytest.raises(RuntimeError, match="an illegal address"):
                engine.encode(TEXTS, batch_size=1)
        assert engine.encode(TEXTS).shape == (10, 48)


def test_close_waits_for_every_device_and_closes_each(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[CudaOps] = []
    monkeypatch.setattr(CudaOps, "close", lambda self: closed.append(self))
    engine = load(tiny("bert", **SHAPE), devices=TWO)
    plain, started = CudaOps.forward, threading.Event()

    def slowly(self: CudaOps, *rest: Any, **options: Any) -> Any:
        started.set()
        time.sleep(0.05)
        assert not closed
        return plain(self, *rest, **options)

    monkeypatch.setattr(CudaOps, "forward", slowly)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(engine.encode, TEXTS, batch_size=1)
        started.wait()
        engine.close()
        with pytest.raises(EngineClosedError, match="was closed"):
            call.result()
    assert closed[::-1] == [here.ops for here in engine._runner.models]


def test_no_device_stays_open_when_a_later_one_fails(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[CudaOps] = []
    plain_close, plain_prepare = CudaOps.close, CudaOps.prepare_embedding
    opened: list[CudaOps] = []

    def close(self: CudaOps) -> None:
        closed.append(self)
        plain_close(self)

    def prepare(self: CudaOps, *rest: Any) -> Any:
        if self not in opened:
            opened.append(self)
        if len(opened) == 2:
            raise DeviceMemoryError("the second device is full")
        return plain_prepare(self, *rest)

    monkeypatch.setattr(CudaOps, "close", close)
    with monkeypatch.context() as patch:
        patch.setattr(CudaOps, "prepare_embedding", prepare)
        with pytest.raises(DeviceMemoryError, match="the second device is full"):
            load(tiny("bert", **SHAPE), devices=TWO)
    assert len(closed) == 2 and set(closed) == set(opened)
    closed.clear()
    with pytest.raises(DeviceError, match="must be emulator:75 or later, got 'emulator:70'"):
        load(tiny("bert", **SHAPE), devices=["emulator:80", "emulator:70"])
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": ["emulator", "cpu"]}, "must all be cuda or emulator devices, got 'cpu'"),
        ({"devices": ["emulator", "cuda:0"]}, "of one kind, got cuda and emulator: the last bits"),
        ({"devices": ["cuda:0", "cuda"]}, "must name each GPU once"),
        ({"devices": ["emulator:80", "emulator:90"]}, r"one compute capability, got .*\(8.0\)"),
        ({"devices": []}, "must be a list such as"),
        ({"devices": "cuda:0"}, "must be a list such as"),
        ({"devices": ["auto"]}, "got 'auto'"),
        ({"devices": ["gpu"]}, "device must be one of"),
        ({"devices": TWO, "device": "cpu"}, "device must not be given beside devices, got 'cpu'"),
        ({"device": "emulator", "matmul_precision": "high"}, "must be highest on emulator, got"),
        ({"device": "cuda", "matmul_precision": "medium"}, "must be highest on cuda, got"),
        ({"device": "cpu", "float_layers": ["layer.0.qkv"]}, "float_layers must be empty on cpu"),
        ({"device": "emulator", "float_layers": "layer.0.qkv"}, "float_layers must be names"),
    ],
)
def test_what_cannot_work_together_is_refused(
    tiny: TinyModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        load(tiny("bert", **SHAPE), **options)


def test_options_reach_the_cuda_ops(tiny: TinyModel) -> None:
    folder = tiny("bert", **SHAPE)
    options = {"device": "emulator", "batch_invariant": False, "float_layers": ["layer.0.qkv"]}
    with Engine.from_pretrained(folder, dtype="int8", **options) as engine:
        (here,) = engine._runner.models
        assert not here.ops.batch_invariant  # type: ignore[attr-defined]
        assert here.parameters.layers[0].qkv.weight_scale is None
        assert here.parameters.layers[0].output.weight_scale is not None
    with pytest.raises(InputError, match=r"float_layers must be of layer.0.qkv to layer.0.output"):
        load(folder, device="emulator", float_layers=["layer.7.qkv"])


def test_two_gpus_launch_on_their_own_memory(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []
    cupy = FakeCupy(num_devices=2, launches_on=launched)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(devices, "choose_code", lambda *_: ("ptx", "sm_80"))
    folder = tiny("bert", **SHAPE)
    with load(folder, device="emulator") as one:
        expected = one.encode(TEXTS, batch_size=2)
    with load(folder, devices=["cuda:0", "cuda:1"]) as both:
        # Plain launches, captures, replays: each on either device.
        for _ in range(4):
            assert np.array_equal(both.encode(TEXTS, batch_size=2), expected)
    assert set(launched) == {0, 1}


def test_auto_warns_once_that_no_gpu_has_run_its_kernels(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cupy = FakeCupy()
    cupy.__spec__ = ModuleSpec("cupy", None, origin="fake_cupy.py")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(devices, "choose_code", lambda *_: ("ptx", "sm_80"))
    select._warn_of_untried_kernels.cache_clear()
    for device, warnings in (("cuda", 0), ("cpu", 0), ("auto", 1), ("auto", 1)):
        with load(tiny("bert", **SHAPE), device=device) as engine:
            assert engine.explain().count("a usable GPU was found") == (device == "auto")
        assert caplog.text.count("never on hardware: device='cpu' does without") == warnings


def test_slots_prefer_the_idlest_device_and_the_first_of_equals() -> None:
    slots = Slots(2, 2)
    release = threading.Event()
    found = []

    def hold() -> None:
        with slots.one() as number:
            found.append(number)
            release.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for i, thread in enumerate(threads, 1):
        thread.start()
        while len(found) < i:
            time.sleep(0.001)
    assert found == [0, 1, 0, 1]
    release.set()
    for thread in threads:
        thread.join()
    with slots.one() as a:
        assert a == 0
    with ThreadPoolExecutor(1) as pool:
        with slots.all():
            waiting = pool.submit(slots.one().__enter__)
            time.sleep(0.02)
            assert not waiting.done()
        assert waiting.result(timeout=10) == 0


def test_a_place_that_an_interruption_left_taken_blocks_nobody() -> None:
    slots = Slots(1, 1)
    left = slots.one()
    assert left.__enter__() == 0  # and its `__exit__` is never called
    with ThreadPoolExecutor(1) as pool:
        with slots.one() as number:
            assert number == 0
            del left  # ends late: the place is another's
            waiting = pool.submit(slots.one().__enter__)
            time.sleep(0.02)
            assert not waiting.done()
        assert waiting.result(timeout=10) == 0
    slots = Slots(1, 1)
    left = slots.one()
    left.__enter__()
    with slots.all():
        pass
