"""A model folder is whole under its name, or as it was before; nothing else is ever replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minibert.compress.output import atomic_folder, check_output
from minibert.errors import InputError


def model(folder: Path, word: str = "old", *, inside: str = "") -> Path:
    """What `_is_model` takes for a model; with `inside`, its encoder lies in that folder."""
    encoder = folder / inside
    encoder.mkdir(parents=True)
    if inside:
        entry = f'[{{"type": "sentence_transformers.models.Transformer", "path": "{inside}"}}]'
        (folder / "modules.json").write_text(entry)
    (encoder / "config.json").write_text('{"model_type": "bert"}')
    (encoder / "model.safetensors").write_text(word)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_a_model_is_replaced_wherever_its_encoder_lies(tmp_path: Path, inside: str) -> None:
    source, target = model(tmp_path / "source"), model(tmp_path / "out", inside=inside)
    with pytest.raises(InputError, match="--overwrite replaces it"):
        check_output(target, source, overwrite=False)
    with atomic_folder(target, source, overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out", "source"]


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        ('{"name": "webapp"}', "model.safetensors"),
        ("[]", "model.safetensors"),
        ("no JSON", "model.safetensors"),
        ('{"model_type": "bert"}', "app.py"),
    ],
)
def test_a_folder_with_a_config_of_something_else_is_never_replaced(
    tmp_path: Path, config: str, weights: str
) -> None:
    source, target = model(tmp_path / "source"), tmp_path / "webapp"
    target.mkdir()
    (target / "config.json").write_text(config)
    (target / weights).write_text("x")
    with pytest.raises(InputError, match="no model folder to be replaced"):
        check_output(target, source, overwrite=True)


@pytest.mark.parametrize("last", [1, 2])
def test_a_stop_at_either_renaming_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    source, target = model(tmp_path / "source"), model(tmp_path / "out")
    renamed: list[Path] = []
    rename = os.rename

    def stop(old: Path, new: Path) -> None:
        renamed.append(old)
        if len(renamed) == last:
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, source, overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert (target / "model.safetensors").read_text() == "old"
    assert names(tmp_path) == ["out", "source"]


def test_a_name_that_another_run_took_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    source, target = model(tmp_path / "source"), tmp_path / "out"
    with pytest.raises(InputError, match="must not exist yet"), atomic_folder(target, source):
        model(target, "of another run")
    assert (target / "model.safetensors").read_text() == "of another run"
    assert names(tmp_path) == ["out", "source"]
