"""A model folder that is either whole under its name or not there at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minibert.config import read_json
from minibert.errors import ConfigError, InputError
from minibert.sentence_config import read_modules


def check_output(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, before the work begins.

    Raises:
        InputError: the name is taken, is the original's or inside it, or cannot be created.
    """
    where = Path(os.path.realpath(target))
    original = source.resolve()
    if where == original or where.is_relative_to(original) or original.is_relative_to(where):
        raise InputError(
            f"output must lie outside the model '{source}', which is never changed, got '{target}'"
        )
    replaceable = _is_model(target)
    if target.exists() and not replaceable:
        raise InputError(
            f"output must not exist yet, got '{target}', which is no model folder to be replaced"
        )
    if replaceable and not overwrite:
        raise InputError(f"output must not exist yet, got '{target}'; --overwrite replaces it")
    if not where.parent.is_dir() or not os.access(where.parent, os.W_OK | os.X_OK):
        raise InputError(f"output must lie in an existing, writable folder, got '{target}'")


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model: an encoder's config.json, and its weights beside it."""
    try:
        encoder_folder = read_modules(folder).encoder_folder
        config = read_json(encoder_folder / "config.json")
    except ConfigError:
        return False
    return "model_type" in config and any(encoder_folder.glob("*.safetensors"))


@contextmanager
def atomic_folder(target: Path, source: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write into, and its name when the block has succeeded.

    The folder is `.<name>.<random>.partial` beside the target. It is removed when the block raises;
    a process that is killed outright leaves it under that name, never under the final one. A model
    that is replaced steps aside as `.<name>.<random>.old`, and back where the run ends there.

    Raises:
        InputError: see `check_output`.
    """
    check_output(target, source, overwrite=overwrite)
    where = Path(os.path.realpath(target))
    tag = secrets.token_hex(4)
    partial = where.with_name(f".{where.name[:40]}.{tag}.partial")
    aside = partial.with_suffix(".old")
    partial.mkdir()
    try:
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        _sync(partial)
        check_output(target, source, overwrite=overwrite)  # again: the block may take hours
        if where.exists():
            os.rename(where, aside)  # a folder that is not empty cannot be replaced in one step
        os.rename(partial, where)
        _sync(where.parent)
    finally:
        if aside.exists() and partial.exists():  # stopped between the two
            os.rename(aside, where)
        shutil.rmtree(partial, ignore_errors=True)
        if aside.exists():
            shutil.rmtree(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
