"""Packed weights in a shared file: the same bytes of results, and never an error of their own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from minibert import Engine
from minibert.errors import InputError
from minibert.ops.cpu import CpuOps
from minibert.ops.packed_file import PackedFile, open_packed
from tests.checkpoints import HIDDEN_SIZE, save_tiny, write_json
from tests.cpu_encoder import PATHS, needs_kernels
from tests.test_cpu_program import Model, batch_of

pytestmark = needs_kernels


def opener(folder: Path, model_folder: Path, dtype: str) -> Callable[[str], PackedFile]:
    def make(path: str) -> PackedFile:
        return open_packed(folder, model_folder, path, dtype=dtype, matmul_precision="highest")

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
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_mapped_layers_give_the_same_bytes(
    tmp_path: Path, model_folder: Path, dtype: str, isa: str
) -> None:
    plain, _ = results(dtype, isa, None)
    packed = opener(tmp_path / "packed", model_folder, dtype)
    first, _ = results(dtype, isa, packed)
    (file,) = (tmp_path / "packed").iterdir()
    stamp = file.stat().st_mtime_ns
    second, ops = results(dtype, isa, packed)
    assert first == second == plain
    assert ops.packed is not None and ops.packed.find("qkv", ops.format, (120, 40)) is not None
    assert file.stat().st_mtime_ns == stamp  # found whole, so not written again


def test_other_weights_kernels_and_formats_do_not_find_it(
    tmp_path: Path, model_folder: Path
) -> None:
    folder = tmp_path / "packed"
    results("float32", None, opener(folder, model_folder, "float32"))
    results("int8", None, opener(folder, model_folder, "int8"))
    assert len(list(folder.iterdir())) == 2
    (model_folder / "model.safetensors").write_bytes(b"other weights")
    results("float32", None, opener(folder, model_folder, "float32"))
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "other"])
def test_a_damaged_file_is_written_again(
    tmp_path: Path, model_folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    packed = opener(tmp_path / "packed", model_folder, "float32")
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
    tmp_path: Path, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "packed"
    blocked.write_text("a file where the folder should be")
    expected, _ = results("float32", None, None)
    with caplog.at_level(logging.WARNING, "minibert"):
        found, _ = results("float32", None, opener(blocked, model_folder, "float32"))
    assert found == expected
    assert "were not kept" in caplog.text
    assert blocked.read_text() == "a file where the folder should be"


def test_other_users_may_read_the_file_as_the_umask_says(
    tmp_path: Path, model_folder: Path
) -> None:
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            results("float32", None, opener(tmp_path / f"{umask}", model_folder, "float32"))
        finally:
            os.umask(before)
        (file,) = (tmp_path / f"{umask}").iterdir()
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_link_to_nothing_in_the_model_folder_is_passed_over(
    tmp_path: Path, model_folder: Path
) -> None:
    packed = opener(tmp_path / "packed", model_folder, "float32")
    path = packed("avx2").path
    (model_folder / "gone.json").symlink_to(model_folder / "nothing.json")
    (model_folder / "loop.json").symlink_to(model_folder / "loop.json")
    assert packed("avx2").path == path


def test_two_layers_of_one_name_are_refused(tmp_path: Path, model_folder: Path) -> None:
    ops = CpuOps(threads=1, packed=opener(tmp_path / "packed", model_folder, "float32"))
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


def save_dense(folder: Path, seed: int) -> None:
    """The step behind the pooling, in a folder beside the encoder's."""
    weight = np.random.default_rng(seed).normal(size=(8, HIDDEN_SIZE)).astype(np.float32)
    write_json(folder / "config.json", {"in_features": HIDDEN_SIZE, "out_features": 8})
    save_file({"linear.weight": weight, "linear.bias": weight[:, 0]}, folder / "model.safetensors")


def save_model(folder: Path, encoder: Path) -> None:
    """A model whose encoder is made of links to another one's files, as in the hub's cache."""
    (folder / "0_Transformer").mkdir(parents=True)
    for file in encoder.iterdir():
        (folder / "0_Transformer" / file.name).symlink_to(file)
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    root = "sentence_transformers.models"
    modules = [{"path": path, "type": f"{root}.{kind}"} for path, kind in kinds.items()]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": HIDDEN_SIZE, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)


def test_another_dense_layer_beside_the_same_encoder_is_not_served(tmp_path: Path) -> None:
    encoder = save_tiny(tmp_path / "encoder", "bert")
    for name, seed in (("a", 1), ("b", 2), ("a", 3)):  # another model, then a layer replaced
        folder = tmp_path / name
        if not folder.exists():
            save_model(folder, encoder)
        (folder / "2_Dense" / "model.safetensors").unlink(missing_ok=True)
        save_dense(folder / "2_Dense", seed)
        plain = Engine.from_pretrained(folder).encode("one text")
        packed = Engine.from_pretrained(folder, packed_weights=tmp_path / "packed")
        assert packed.encode("one text").tobytes() == plain.tobytes()


def test_the_same_files_under_other_names_are_another_model(tmp_path: Path) -> None:
    kept = []
    for i, names in enumerate((("1_Dense", "2_Dense"), ("2_Dense", "3_Dense"))):
        for name in names:
            folder = tmp_path / f"{i}" / name
            folder.mkdir(parents=True)
            blob = tmp_path / f"blob{names.index(name)}"
            blob.touch()
            (folder / "model.safetensors").symlink_to(blob)
        kept.append(opener(tmp_path / "packed", tmp_path / f"{i}", "float32")("avx2").path)
    assert kept[0] != kept[1]


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="packed_weights must be a folder, got the file"):
        Engine.from_pretrained(tmp_path, packed_weights=file)
    with pytest.raises(InputError, match="packed_weights must be a path or None, got 5"):
        Engine.from_pretrained(tmp_path, packed_weights=5)  # type: ignore[arg-type]
