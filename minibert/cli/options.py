"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from minibert.cli.values import Choice, IntRange, PathTo

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_DEBUG_KEY = "minibert.debug"


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG_KEY] = True


def is_debug(ctx: click.Context) -> bool:
    """Return whether `--debug` was given, before or after the command's name."""
    return bool(ctx.meta.get(_DEBUG_KEY))


def debug_option(function: Decorated) -> Decorated:
    """Add `--debug`."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="On an error, show the traceback instead of one line.",
    )(function)


def _wants_progress(ctx: click.Context, param: click.Parameter, value: bool | None) -> bool:
    if sys.stderr is None:  # closed by the caller: there is nowhere to draw
        return False
    return sys.stderr.isatty() if value is None else value


def progress_option(function: Decorated) -> Decorated:
    """Add `--progress/--no-progress`; the command is told whether to show a bar on stderr."""
    return click.option(
        "--progress/--no-progress",
        default=None,
        callback=_wants_progress,
        help="Show a bar.  [default: on a terminal]",
    )(function)


def _split(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",")]


_ENGINE_OPTIONS = (
    click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda, numpy or emulator."
    ),
    click.option(
        "--devices",
        metavar="NAME,NAME",
        callback=_split,
        help="Several GPUs that share the batches, such as cuda:0,cuda:1.",
    ),
    click.option(
        "--dtype",
        help="How linear layers compute.  [default: int8 for a quantized model, else float32]",
    ),
    click.option(
        "--matmul-precision",
        type=Choice(["highest", "high", "medium"]),
        default="highest",
        show_default=True,
        help="How exactly float32 products are computed; on CUDA only highest.",
    ),
    click.option(
        "--batch-invariant/--no-batch-invariant",
        default=True,
        show_default=True,
        help="Whether a text's last bits may never depend on its batch.",
    ),
    click.option(
        "--batch-tokens",
        "max_batch_tokens",
        type=IntRange(min=1),
        help="Tokens in a batch, at most.  [default: chosen for the device]",
    ),
    click.option("--memory-limit", metavar="SIZE", help="Peak of working memory, such as 512MB."),
    click.option(
        "--truncation",
        type=Choice(["warn", "error", "silent"]),
        default="warn",
        show_default=True,
        help="What to do about a text that is too long.",
    ),
    click.option(
        "--max-length",
        type=IntRange(min=1),
        help="Tokens of a text, at most.  [default: the model's own]",
    ),
    click.option(
        "--truncation-side",
        type=Choice(["right", "left"]),
        help="The end at which a long text is cut.  [default: the model's own]",
    ),
    click.option("--threads", type=IntRange(min=1), help="CPU threads to use."),
    click.option(
        "--packed-weights",
        metavar="FOLDER",
        type=PathTo(file_okay=False, path_type=Path),
        help="Keep weights there as the CPU kernels lay them out: the next run starts sooner.",
    ),
    click.option(
        "--ignore-config-key",
        "ignore_config_keys",
        multiple=True,
        help="Key of config.json known to have no effect (repeatable).",
    ),
    click.option("--revision", help="Branch, tag or commit of a model on the hub."),
    click.option(
        "--cache-folder", type=PathTo(file_okay=False, path_type=Path), help="The hub's cache."
    ),
    click.option("--local-files-only", is_flag=True, help="Never ask the network for a model."),
)


def engine_options(function: Decorated) -> Decorated:
    """Add what the command line offers of `Engine.from_pretrained`, under its keywords' names."""
    for option in reversed(_ENGINE_OPTIONS):
        function = option(function)
    return function
