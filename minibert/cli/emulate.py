"""`minibert emulate FILE.cu`: run a CUDA kernel without a GPU, and report what is wrong with it."""

from __future__ import annotations

import click

from minibert.cli.options import debug_option
from minibert.cli.values import IntRange, PathTo


def _extents(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        extents = tuple(int(part) for part in value.split(","))
    except ValueError:
        extents = ()
    if not 1 <= len(extents) <= 3 or min(extents) < 1:
        raise click.BadParameter(f"must be one to three numbers such as 4 or 8,2, got {value!r}")
    return extents


@click.command()
@click.argument("path", type=PathTo(exists=True, dir_okay=False), metavar="FILE.cu")
@click.argument("arguments", nargs=-1, metavar="[ARGUMENT]...")
@click.option("--kernel", help="Which kernel, or a template instance such as 'gemm<64>'.")
@click.option("--grid", default="1", show_default=True, callback=_extents, help="Blocks: x[,y,z].")
@click.option("--block", default="32", show_default=True, callback=_extents, help="Threads.")
@click.option("--shared", type=IntRange(min=0), default=0, help="Dynamic shared bytes.")
@click.option("--arch", default="sm_80", show_default=True, help="Architecture to compile for.")
@click.option("--define", "-D", "defines", multiple=True, help="Macro, such as -D N=64.")
@click.option("--steps", type=IntRange(min=1), default=1_000_000, help="Endless beyond this.")
@click.option("--seed", type=IntRange(min=0), default=0, help="Of random arguments.")
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    path: str,
    arguments: tuple[str, ...],
    kernel: str | None,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    arch: str,
    defines: tuple[str, ...],
    steps: int,
    seed: int,
) -> None:
    r"""Run a kernel of FILE.cu in the emulator; exit code 1 where it found a fault.

    \b
    ARGUMENTs, in the kernel's order:
      float32[64,128]          an array that nobody wrote: an output
      float32[64]=random       also zeros, ones, range, or a number
      data.npy                 an array from a file
      int32:64  float32:0.5    scalars; plain 64 is an int32
      null                     a null pointer
    """
    from minibert.kernels.emulator.run import emulate_file

    result = emulate_file(
        path,
        kernel,
        grid,
        block,
        arguments,
        shared_mem=shared,
        arch=arch,
        options=[f"-D{define}" for define in defines],
        step_limit=steps,
        seed=seed,
    )
    click.echo(result.report())
    if result.fault is not None:
        ctx.exit(1)
