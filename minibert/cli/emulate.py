"""`minibert emulate FILE.cu`: run a CUDA kernel without a GPU, and report what is wrong with it."""

from __future__ import annotations

import click

from minibert.cli.options import debug_option, is_debug
from minibert.cli.values import IntRange, PathTo
from minibert.errors import InputError


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
@click.option(
    "--shared", type=IntRange(min=0), default=0, show_default=True, help="Dynamic shared bytes."
)
@click.option("--arch", default="sm_80", show_default=True, help="Architecture to compile for.")
@click.option("--define", "-D", "defines", multiple=True, help="Macro, such as -D N=64.")
@click.option(
    "--steps",
    type=IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="Endless beyond this.",
)
@click.option(
    "--seed", type=IntRange(min=0), default=0, show_default=True, help="Of random arguments."
)
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
    """Run a kernel of FILE.cu in the emulator; exit code 1 where it found a fault.

    A file that does not compile, or a launch that a device would refuse, is exit code 2.

    \b
    ARGUMENTs, in the kernel's order:
      float32[64,128]          an array that nobody wrote: an output
      float32[64]=random       also zeros, ones, range, or a number
      data.npy                 an array from a file
      int32:64  float32:0.5    scalars; plain 64 is an int32
      null                     a null pointer
    """  # noqa: D301 - click's mark for lines to keep is the character, not its name
    from minibert.kernels.cuda.nvrtc import CompileError
    from minibert.kernels.emulator.faults import LaunchError
    from minibert.kernels.emulator.run import emulate_file

    try:
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
    except LaunchError as error:  # of a device it would be one, here the arguments have to change
        raise InputError(str(error)) from error
    except CompileError as error:
        if is_debug(ctx):
            raise
        click.echo(f"minibert: error: {error}", err=True)  # the compiler's log keeps its lines
        ctx.exit(2)
    click.echo(result.report())
    if result.fault is not None:
        ctx.exit(1)
