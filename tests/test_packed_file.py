"""Packed weights in a shared file: the same bytes of results, and never an error of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine
from minibert.errors import InputError
from minibert.kernels.cpu import loader
from minibert.ops.cpu import CpuOps, available
from minibert.ops.packed_file import PackedFile, open_packed
from tests.checkpoints import save_tiny
from tests.test_cpu_program import Model, batch_of

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])
PATHS = [path.name for path in loader.all_paths() if path.supported] if available()[0] else []


def opener(folder: Path, checkpoint: list[Path], dtype: str) -> Callable[[str], PackedFile]:
    def make(path: str) -> PackedFile:
        return open_packed(folder, checkpoint, path, dtype=dtype, matmul_precision="highest")

    return make


def results(dtype: str, isa: str | None, packed: Any) -> tuple[bytes, CpuOps]:
    ops = CpuOps(dtype, threads=1, isa=isa, packed=packed)
    model = Model(ops)
    if ops.packed:
        ops.packed.save()
    with ops.stream(alone=False) as running:
        rows = running.forward(batch_of(0, 3, 17), model, key="model")
    return b"".join(row.tobytes() for row in rows), ops


@pytest.fixture
def checkpoint(tmp_path: Path) -> list[Path]:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    return [file]


@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_mapped_layers_give_the_same_bytes(
    tmp_path: Path, checkpoint: list[Path], dtype: str, isa: str
) -> None:
    plain, _ = results(dtype, isa, None)
    packed = opener(tmp_path / "packed", checkpoint, dtype)
    first, _ = results(dtype, isa, packed)
    (file,) = (tmp_path / "packed").iterdir()
    stamp = file.stat().st_mtime_ns
    second, ops = results(dtype, isa, packed)
    assert first == second == plain
    assert ops.packed is not None and ops.packed.find("qkv", ops.format, (120, 40)) is not None
    assert file.stat().st_mtime_ns == stamp  # found whole, so not written again


def test_other_weights_kernels_and_formats_do_not_find_it(
    tmp_path: Path, checkpoint: list[Path]
) -> None:
    folder = tmp_path / "packed"
    results("float32", None, opener(folder, checkpoint, "float32"))
    results("int8", None, opener(folder, checkpoint, "int8"))
    assert len(list(folder.iterdir())) == 2
    checkpoint[0].write_bytes(b"other weights")
    results("float32", None, opener(folder, checkpoint, "float32"))
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "other"])
def test_a_damaged_file_is_written_again(
    tmp_path: Path, checkpoint: list[Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    packed = opener(tmp_path / "packed", checkpoint, "float32")
    expected, _ = results("float32", None, packed)
    (file,) = (tmp_path / "packed").iterdir()
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[:-1],
            "header": whole[:8] + b"\xff" * 8 + whole[16:],
            "empty": b"",
            "other": whole.replace(b'"highest"', b'"HIGHEST"'),
        }[damage]
    )
    with caplog.at_level(logging.WARNING, "minibert"):
        again, _ = results("float32", None, packed)
    assert "are not used" in caplog.text
    assert again == expected
    assert file.read_bytes() == whole
    assert len(list(file.parent.iterdir())) == 1


def test_where_nothing_can_be_written_the_weights_are_packed_all_the_same(
    tmp_path: Path, checkpoint: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "packed"
    blocked.write_text("a file where the folder should be")
    expected, _ = results("float32", None, None)
    with caplog.at_level(logging.WARNING, "minibert"):
        found, _ = results("float32", None, opener(blocked, checkpoint, "float32"))
    assert found == expected
    assert "were not kept" in caplog.text
    assert blocked.read_text() == "a file where the folder should be"


def test_two_layers_of_one_name_are_refused(tmp_path: Path, checkpoint: list[Path]) -> None:
    ops = CpuOps(threads=1, packed=opener(tmp_path / "packed", checkpoint, "float32"))
    add = partial(ops.prepare_linear, np.zeros((3, 8), np.float32), None, name="same")
    add()
    with pytest.raises(ValueError, match="names of their own, got 'same' twice"):
        add()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_engines_share_the_file(tmp_path: Path, dtype: str) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    texts = ["one text", "another, somewhat longer text"]
    plain = Engine.from_pretrained(folder, dtype=dtype).encode(texts)
    for _ in range(2):
        packed = Engine.from_pretrained(folder, dtype=dtype, packed_weights=tmp_path / "packed")
        assert packed.encode(texts).tobytes() == plain.tobytes()
        assert len(list((tmp_path / "packed").iterdir())) == 1


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="packed_weights must be a folder, got the file"):
        Engine.from_pretrained(tmp_path, packed_weights=file)
    with pytest.raises(InputError, match="packed_weights must be a path or None, got 5"):
        Engine.from_pretrained(tmp_path, packed_weights=5)  # type: ignore[arg-type]
