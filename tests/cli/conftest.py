"""Ways to run the command line, in this process and in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minibert.cli import app

CHECKOUT = Path(__file__).resolve().parents[2]
DIMENSION = 32


@pytest.fixture(scope="session")
def tiny_model(tiny: Callable[..., Path]) -> Path:
    """A tiny BERT with vectors of `DIMENSION` numbers."""
    return tiny("bert", hidden_size=DIMENSION)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run the command line in this process: `run("encode", folder, "--text", "a cat")`."""

    def invoke(*arguments: object, **keywords: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], **keywords)

    return invoke


def _default_signals() -> None:
    """What a shell gives a command; a test run in the background would hand on ignored ones."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[bytes]]:
    """Start the command line in a process of its own."""

    def popen(*arguments: object, **keywords: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "minibert", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            preexec_fn=_default_signals,
            **keywords,
        )

    return popen
