"""The command group: lazy commands, and one place where an exception becomes a line and a code.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the machine or the program failed: device, disk, a bug |
| 2 | the arguments, the input or the model folder have to change |
| 128 + n | ended by signal n; 141 is a reader that closed the pipe |
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, cast

import click

import minibert
from minibert.cli.options import debug_option, is_debug
from minibert.cli.values import value_error
from minibert.errors import DeviceError, EngineClosedError, InputError, MinibertError

COMMANDS = {
    "encode": "Encode texts into vectors.",
    "quantize": "Write a copy of a model with int8 or int4 weights.",
    "prune": "Write a smaller copy of a model: fewer heads, neurons, layers.",
    "sparsify": "Write a copy of a model with single weights left out.",
    "distil": "Write a student of a model: fewer layers, fitted to their teacher.",
    "explain": "Show how a model is read and run, and why.",
    "doctor": "Show what this machine offers minibert and what is missing.",
    "emulate": "Run a CUDA kernel without a GPU and report its faults.",
    "demo": "Search a small text set by meaning, with a real model.",
}


class LazyGroup(click.Group):
    """A group whose command `name` is the object `command` of `minibert.cli.<name>`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a first use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"minibert.cli.{cmd_name}")
        return cast(click.Command, module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the group's options; help that cannot be written is a failure like any other."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            _discard_stdout()
            raise click.exceptions.Exit(128 + signal.SIGPIPE) from None
        except OSError as error:
            click.echo(f"minibert: error: {_one_line(error)}", err=True)
            raise click.exceptions.Exit(1) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every failure is one line on stderr and an exit code."""
        try:
            with _signals_as_exits(), _warnings_as_lines():
                return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:  # wrong usage: click shows how it is done
            line = value_error(error)
            if line is None:
                raise
            click.echo(f"minibert: error: {line}", err=True)
            ctx.exit(2)
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            _discard_stdout()
            ctx.exit(128 + signal.SIGPIPE)
        except Exception as error:
            if is_debug(ctx):
                raise
            click.echo(f"minibert: error: {_one_line(error)}", err=True)
            ctx.exit(exit_code(error))


def exit_code(error: Exception) -> int:
    """Return 2 where the caller can mend it, 1 where the machine or the program failed."""
    if isinstance(error, InputError):
        return 2
    if isinstance(error, (DeviceError, EngineClosedError)):
        return 1
    return 2 if isinstance(error, MinibertError) else 1


def _one_line(error: Exception) -> str:
    """Return the message on one line; a bug also names its type and the way to its traceback."""
    message = " ".join(str(error).split())
    if isinstance(error, MinibertError):
        return message
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename  # of a copy, what is written
        return f"{name}: {error.strerror}" if name else error.strerror
    name = type(error).__name__
    return f"{name}: {message} (--debug shows the traceback)" if message else name


def _discard_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit, so that what is half done is removed.

    A signal that is ignored stays so: `nohup minibert ...` outlives its terminal.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, leave)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show a warning as one line on stderr, above a progress bar if there is one."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if sys.stderr is None:  # closed by the caller; tqdm would write to stdout, into the data
            return
        from tqdm import tqdm

        text = " ".join(str(message).split())
        tqdm.write(f"minibert: warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.showwarning = show
        yield


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(minibert.__version__, prog_name="minibert")
@debug_option
@click.pass_context
def app(ctx: click.Context) -> None:
    """BERT inference from scratch: pure arrays, own kernels, no deep-learning framework.

    Start with `minibert demo`, or with

    \b
        minibert encode MODEL texts.txt -o vectors.npy
    """  # noqa: D301 - click's mark for lines to keep is the character, not its name
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> None:
    """Run the command line: the entry point of the `minibert` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows a ?
    app(prog_name="minibert")
