from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from minibert.errors import WeightsError
from minibert.weights.tensors import open_tensors, release, to_float32

VALUES = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], np.float16),
    "c": np.array(7.0, np.float32),
}


def write_raw(path: Path, header: Any, data: bytes, *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_values_are_those_that_were_saved(tmp_path: Path) -> None:
    save_file(VALUES, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = open_tensors(tmp_path)
    assert set(tensors) == set(VALUES)
    assert len(tensors) == 3
    assert tensors.files == (tmp_path / "model.safetensors",)
    for name, value in VALUES.items():
        assert np.array_equal(tensors[name].data, value)
        assert tensors[name].data.shape == value.shape
        assert tensors[name].data.dtype == value.dtype


def test_float32_is_mapped_and_read_only(tmp_path: Path) -> None:
    save_file({"a": VALUES["a"]}, tmp_path / "model.safetensors")
    values = to_float32(open_tensors(tmp_path)["a"])
    base: Any = values
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1.0


def test_bfloat16_and_float16_widen_exactly(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, generator=generator) * 1e3
    values[:3] = torch.tensor([0.0, -0.0, 1e-40])
    saved = {"bf16": values.bfloat16(), "f16": values.half(), "f32": values}
    save_torch(saved, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    for name, tensor in saved.items():
        ours = to_float32(tensors[name])
        assert ours.dtype == np.float32
        assert ours.tobytes() == tensor.float().numpy().tobytes()


def test_tensors_that_the_file_does_not_align_are_right(tmp_path: Path) -> None:
    values = np.arange(3, dtype=np.float32)
    header = {"x": entry(0, 1, 1, dtype="U8"), "y": entry(1, 13, 3)}
    write_raw(tmp_path / "model.safetensors", header, b"\x05" + values.tobytes())
    tensors = open_tensors(tmp_path)
    assert np.array_equal(tensors["y"].data, values)
    assert np.array_equal(tensors["x"].data, [5])


def test_empty_tensors_and_empty_files_are_read(tmp_path: Path) -> None:
    save_file({"nothing": np.zeros((0, 4), np.float32)}, tmp_path / "model.safetensors")
    assert open_tensors(tmp_path)["nothing"].data.shape == (0, 4)
    save_file({}, tmp_path / "other.safetensors")
    assert len(open_tensors(tmp_path, "other.safetensors")) == 0


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    save_file({"a": VALUES["a"], "b": VALUES["b"]}, tmp_path / "model-1.safetensors")
    save_file({"c": VALUES["c"]}, tmp_path / "model-2.safetensors")
    write_index(
        tmp_path,
        {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"},
    )
    tensors = open_tensors(tmp_path)
    assert {name: tensors[name].file.name for name in tensors} == {
        "a": "model-1.safetensors",
        "b": "model-1.safetensors",
        "c": "model-2.safetensors",
    }
    assert np.array_equal(tensors["c"].data, VALUES["c"])


def test_a_shard_may_be_a_link_into_a_cache(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    save_file({"a": VALUES["a"]}, blobs / "0123")
    (folder / "model-1.safetensors").symlink_to(Path("..") / "blobs" / "0123")
    write_index(folder, {"a": "model-1.safetensors"})
    assert np.array_equal(open_tensors(folder)["a"].data, VALUES["a"])


@pytest.mark.parametrize("shard", ["../evil.safetensors", "sub/../../evil.safetensors", "/evil"])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": VALUES["a"]}, tmp_path / "evil.safetensors")
    write_index(folder, {"a": shard})
    with pytest.raises(WeightsError, match="inside") as caught:
        open_tensors(folder)
    assert shard in str(caught.value)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "model-9.safetensors"}, ["model-9.safetensors", "missing"]),
        ({"a": "one", "z": "one"}, ["z", "one", "does not"]),
        ({"a": "one", "b": "two"}, ["a", "two"]),
        ({"a": "."}, ["'.'", "missing"]),
        ({"a": ""}, ["missing"]),
        ({"a": 3}, ["weight_map", "3"]),
        ({}, ["weight_map", "{}"]),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    tmp_path: Path, weight_map: dict[str, str], words: list[str]
) -> None:
    save_file({"a": VALUES["a"]}, tmp_path / "one")
    save_file({"a": VALUES["a"], "b": VALUES["b"]}, tmp_path / "two")
    write_index(tmp_path, weight_map)
    with pytest.raises(WeightsError) as caught:
        open_tensors(tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "[" * 200_000, "\ufeff{"],
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError, match="weight_map"):
        open_tensors(tmp_path)


def good_header(**more: Any) -> dict[str, Any]:
    return {"x": entry(0, 12, 3), **more}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        pytest.param(good_header(), b"\0" * 11, None, id="data shorter than the header says"),
        pytest.param(good_header(), b"\0" * 13, None, id="data longer than the header says"),
        pytest.param(good_header(), b"\0" * 12, 1 << 20, id="header longer than the file"),
        pytest.param(good_header(), b"\0" * 12, (1 << 64) - 1, id="header of 2^64 bytes"),
        pytest.param(good_header(), b"\0" * 12, 5, id="header cut short"),
        pytest.param(good_header(y=entry(8, 20, 3)), b"\0" * 20, None, id="overlap"),
        pytest.param(good_header(y=entry(16, 28, 3)), b"\0" * 28, None, id="hole"),
        pytest.param(good_header(y=entry(24, 12, 3)), b"\0" * 24, None, id="end before begin"),
        pytest.param(good_header(y=entry(12, 24, 4)), b"\0" * 24, None, id="shape does not fit"),
        pytest.param(good_header(y=entry(12, 24, -3)), b"\0" * 24, None, id="negative shape"),
        pytest.param(
            good_header(y=entry(12, 24, 1 << 62, 1 << 62)), b"\0" * 24, None, id="shape overflows"
        ),
        pytest.param({"x": entry(0, 12, 3, dtype="F31")}, b"\0" * 12, None, id="unknown dtype"),
        pytest.param({"x": {"dtype": "F32"}}, b"\0" * 12, None, id="no offsets"),
        pytest.param(b"[]", b"", None, id="header is an array"),
        pytest.param(b"\xff\xfe", b"", None, id="header is not UTF-8"),
        pytest.param(b"[" * 100_000, b"", None, id="header is deep"),
        pytest.param(b"", b"", None, id="header is empty"),
    ],
)
def test_a_file_that_lies_about_itself_is_refused(
    tmp_path: Path, header: Any, data: bytes, length: int | None
) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, header, data, length=length)
    with pytest.raises(WeightsError, match="sound safetensors file") as caught:
        open_tensors(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0", b"\x08\0\0\0\0\0\0\0", b"PK\x03\x04" * 40])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="sound safetensors file"):
        open_tensors(tmp_path)


def test_a_file_without_read_permission_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(WeightsError, match=r"model\.safetensors must be a file that you may read"):
        open_tensors(tmp_path)


def test_a_name_that_stands_twice_in_one_header_is_refused(tmp_path: Path) -> None:
    one, two = json.dumps(entry(0, 4, 1)), json.dumps(entry(4, 8, 1))
    write_raw(tmp_path / "model.safetensors", f'{{"x":{one},"x":{two}}}'.encode(), b"\0" * 8)
    with pytest.raises(WeightsError, match="sound safetensors file"):
        open_tensors(tmp_path)


def test_a_folder_of_pickles_is_refused_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin.*never loaded.*safe_serialization"):
        open_tensors(tmp_path)


def test_an_empty_folder_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors or model\.safetensors\.index"):
        open_tensors(tmp_path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(WeightsError, match="neither"):
        open_tensors(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are counted by Linux")
def test_released_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    def resident_mb() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) / 1024

    values = np.random.default_rng(0).standard_normal((3, 1 << 20)).astype(np.float32)
    save_file({"a": values, "b": values[:, :5].copy()}, tmp_path / "model.safetensors")
    mapped = open_tensors(tmp_path)["a"].data
    before = resident_mb()
    assert float(mapped.sum()) == float(values.sum())
    touched = resident_mb()
    assert touched - before > 10
    release(mapped)
    assert touched - resident_mb() > 10
    assert np.array_equal(mapped, values)
    release(values)  # not mapped: nothing to do
