"""A sound model folder, what a call raises, and what a process still holds of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.checkpoints import save_sentence_files, save_tiny, write_json


def save_good(folder: Path) -> Path:
    """A tiny model with pooling, normalisation and two prompts."""
    save_tiny(folder)
    save_sentence_files(folder)
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "the cat ", "document": ""}, "default_prompt_name": None},
    )
    return folder


def refusal(call: Callable[[], object]) -> tuple[type[BaseException] | None, str]:
    """What a call raises, without keeping its traceback (and all that it holds) alive."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None, ""


def mapped(folder: Path) -> list[str]:
    """Files of a folder that this process still has mapped or open (where the system says so)."""
    found = []
    maps, opened = Path("/proc/self/maps"), Path("/proc/self/fd")
    if maps.exists():
        found += [line for line in maps.read_text().splitlines() if str(folder) in line]
        for link in list(opened.iterdir()):
            try:
                found += [str(link)] if str(folder) in str(link.readlink()) else []
            except OSError:  # the listing's own handle is gone by now
                continue
    return found
