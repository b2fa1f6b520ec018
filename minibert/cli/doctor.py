"""`minibert doctor`: what this machine offers, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import click

import minibert
from minibert.cli import machine
from minibert.cli.options import debug_option
from minibert.kernels.cpu import cores

if TYPE_CHECKING:
    from minibert.kernels.cuda.launch import Target

_COLOURS = {"ok": "green", "warn": "yellow", "off": "bright_black"}
_MARKS = {"ok": "ok", "warn": "!!", "off": "--"}
_WIDTH = 80
_INDENT = 24
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_PATH_FEATURES = {  # as machine.FEATURES calls them
    "avx2": {"AVX2", "FMA", "F16C"},
    "avx2-vnni": {"AVX2", "AVX-VNNI"},
    "avx512": {"AVX-512"},
    "avx512-vnni": {"AVX-512 VNNI"},
    "amx": {"AVX-512 VNNI", "AMX"},
    "neon-dotprod": {"NEON dot product"},
    "neon-i8mm": {"NEON dot product", "I8MM"},
    "neon-bf16": {"NEON dot product", "I8MM", "BF16"},
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        section: heading that it stands under.
        name: what was looked at.
        status: ok; warn (works, but slower or not as it seems); off (optional and not there).
        value: what was found.
        advice: what to do about it, or None.
    """

    section: str
    name: str
    status: str
    value: str
    advice: str | None = None


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@debug_option
def command(as_json: bool) -> None:
    """Show what this machine offers minibert, what is missing, and what to do about it."""
    findings = examine()
    if as_json:
        report = {"version": minibert.__version__, "findings": [asdict(f) for f in findings]}
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    click.secho(f"minibert {minibert.__version__}", bold=True)
    for section, group in groupby(findings, key=lambda finding: finding.section):
        click.echo()
        click.secho(section, bold=True)
        for finding in group:
            _show(finding)


def examine() -> list[Finding]:
    """Look at everything; nothing here needs a model or changes anything."""
    return [*_machine(), *_arrays(), *_cpu_kernels(), *_gpu(), *_gpu_kernels(), *_packages()]


def _machine() -> Iterator[Finding]:
    section = "Machine"
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    yield Finding(section, "system", "ok", system)
    implementation = platform.python_implementation()
    yield Finding(section, "Python", "ok", f"{implementation} {platform.python_version()}")
    yield Finding(section, "processor", "ok", machine.cpu_model())
    features = machine.cpu_features()
    if features is None:
        yield Finding(section, "features", "off", "the system does not list them")
    elif {"AVX2", "NEON"}.isdisjoint(features):
        found = ", ".join(features) or "none of those that matter"
        advice = "without AVX2 or NEON everything runs, several times slower"
        yield Finding(section, "features", "warn", found, advice)
    else:
        yield Finding(section, "features", "ok", ", ".join(features))
    yield _cores(section)


def _cores(section: str) -> Finding:
    affinity, quota = cores.affinity_cores(), cores.cgroup_quota()
    value = f"{affinity} of {os.cpu_count() or affinity} usable by this process"
    if quota is None or quota >= affinity:
        return Finding(section, "cores", "ok", f"{value}, no smaller quota")
    value += f", a quota of {quota:g}: the kernels use {cores.usable_cores()}"
    return Finding(section, "cores", "ok", value)


def _arrays() -> Iterator[Finding]:
    section = "Arrays"
    yield Finding(section, "NumPy", "ok", machine.version_of("numpy") or "not a distribution")
    blas = machine.blas()
    if blas is None:
        advice = "NumPy does not say; its wheels carry OpenBLAS or use Accelerate"
        yield Finding(section, "BLAS", "warn", "unknown", advice)
        return
    value = blas.name + (f", kernels for {blas.kernel}" if blas.kernel else "")
    forced = os.environ.get("OPENBLAS_CORETYPE")
    if forced:
        advice = "unset OPENBLAS_CORETYPE to let it choose for this processor"
        yield Finding(section, "BLAS", "warn", f"{value}, forced to {forced}", advice)
    else:
        yield Finding(section, "BLAS", "ok", value)
    named = [f"{name}={os.environ[name]}" for name in _THREAD_VARIABLES if name in os.environ]
    count = "unknown" if blas.threads is None else str(blas.threads)
    value, usable = ", ".join([count, *named]), cores.usable_cores()
    if blas.threads is None or blas.threads <= usable:
        yield Finding(section, "BLAS threads", "ok", value)
        return
    advice = (
        "where NumPy multiplies, more threads than usable cores wait for each other: "
        f"OPENBLAS_NUM_THREADS={usable}"
    )
    yield Finding(section, "BLAS threads", "warn", value, advice)


def _cpu_kernels() -> Iterator[Finding]:
    from minibert.ops import cpu

    section, name = "CPU kernels", "extension"
    built, reason = cpu.available()
    if built:
        yield Finding(section, name, "ok", reason)
        yield from _left_out(section)
        return
    if cpu.is_built():
        yield Finding(section, name, "warn", reason, "until then no model is loaded on the CPU")
        return
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    advice = f"until then NumPy does the work, slower; compiler found: {compiler or 'none'}"
    yield Finding(section, name, "warn", reason, advice)


def _left_out(section: str) -> Iterator[Finding]:
    """Paths that the compiler was too old for: a loss where the processor could run them."""
    from minibert.kernels.cpu import loader

    features = set(machine.cpu_features() or ())
    lost: dict[str, list[str]] = {}
    for path, reason in loader.left_out().items():
        lost.setdefault(reason, []).append(path)
    for reason, names in lost.items():
        missed = [name for name in names if features.issuperset(_PATH_FEATURES.get(name, {"?"}))]
        advice = f"not in this build ({reason})"
        if missed:
            advice += f"; this processor has {', '.join(missed)}: install with a newer compiler"
        status = "warn" if missed else "off"
        yield Finding(section, "left out", status, ", ".join(names), advice)


def _gpu() -> Iterator[Finding]:
    section = "GPU"
    smi = shutil.which("nvidia-smi")
    driver = machine.cuda_driver()
    if driver is None:
        advice = (
            "nvidia-smi is here but libcuda.so.1 is not: in a container, start it with GPU access"
            if smi
            else "for an NVIDIA GPU, install its driver; without one the CPU does the work"
        )
        yield Finding(section, "driver", "warn" if smi else "off", "not found", advice)
    else:
        version = "unknown CUDA" if driver.version is None else "CUDA {}.{}".format(*driver.version)
        if driver.problem:
            advice = "run nvidia-smi; a container must be started with GPU access"
            yield Finding(section, "driver", "warn", f"{version}: {driver.problem}", advice)
        else:
            yield Finding(section, "driver", "ok", version)
        for index, gpu in enumerate(driver.devices):
            yield _one_gpu(section, index, gpu)
        if len({gpu.compute_capability for gpu in driver.devices}) == 1 < len(driver.devices):
            names = ",".join(f"cuda:{index}" for index in range(len(driver.devices)))
            yield Finding(section, "together", "ok", f"--devices {names} shares the batches")
    yield from _gpu_packages(section, driver)


def _one_gpu(section: str, index: int, gpu: machine.Gpu) -> Finding:
    from minibert.errors import DeviceError

    value = (
        f"{gpu.name}, compute capability {gpu.compute_capability / 10:.1f}, "
        f"{gpu.num_sms} multiprocessors, {gpu.smem_bytes // 1024} KB of shared memory a block"
    )
    try:
        _target(gpu)
    except DeviceError as error:
        return Finding(section, f"GPU {index}", "warn", value, str(error))
    return Finding(section, f"GPU {index}", "ok", value)


def _gpu_kernels() -> Iterator[Finding]:
    """Which kernel variant each GPU gets for what, and why; GPUs that are alike together."""
    from minibert.errors import DeviceError
    from minibert.kernels.cuda.launch import describe

    driver = machine.cuda_driver()
    alike: dict[Target, list[str]] = {}
    for index, gpu in enumerate(driver.devices if driver else ()):
        with suppress(DeviceError):
            alike.setdefault(_target(gpu), []).append(str(index))
    for target, numbers in alike.items():
        for operation, (used, sentence) in describe(target).items():
            section = f"Kernels of GPU {', '.join(numbers)}"
            yield Finding(section, operation, "ok" if used else "off", sentence)


def _target(gpu: machine.Gpu) -> Target:
    from minibert.kernels.cuda.launch import target_for

    return target_for(gpu.compute_capability, gpu.num_sms, gpu.smem_bytes or None)


def _gpu_packages(section: str, driver: machine.CudaDriver | None) -> Iterator[Finding]:
    usable = driver is not None and not driver.problem
    version = (driver.version if driver else None) or (12, 0)
    extra = "cuda13" if version >= (13, 0) else "cuda12"
    install = f'pip install "minibert-engine[{extra}]"'
    missing = "warn" if usable else "off"
    advice = install if usable else f"only needed with a GPU: {install}"
    cupy = machine.version_of("cupy-cuda13x", "cupy-cuda12x", "cupy")
    if cupy is None:
        yield Finding(section, "CuPy", missing, "not installed", advice)
    else:
        yield Finding(section, "CuPy", "ok", cupy)
    compiler = machine.nvrtc()
    if compiler is None:
        yield Finding(section, "NVRTC", missing, "not found", advice)
    else:
        package = machine.version_of("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
        yield Finding(section, "NVRTC", "ok", package or compiler)


def _packages() -> Iterator[Finding]:
    section = "Packages"
    for name in ("tokenizers", "safetensors"):
        found = machine.version_of(name)
        advice = None if found else f"pip install {name}"
        yield Finding(section, name, "ok" if found else "warn", found or "missing", advice)
    optional = {
        "huggingface_hub": ("hub", "models by name"),
        "pyarrow": ("parquet", "Parquet files"),
    }
    for name, (extra, purpose) in optional.items():
        found = machine.version_of(name)
        advice = None if found else f'for {purpose}: pip install "minibert-engine[{extra}]"'
        status = "ok" if found else "off"
        yield Finding(section, name, status, found or "not installed", advice)


def _show(finding: Finding) -> None:
    mark = click.style(_MARKS[finding.status], fg=_COLOURS[finding.status])
    wrapper = textwrap.TextWrapper(_WIDTH - _INDENT, break_on_hyphens=False)
    lines = wrapper.wrap(finding.value) or [""]
    if finding.advice:
        wrapper.initial_indent, wrapper.subsequent_indent = "-> ", "   "
        lines += wrapper.wrap(finding.advice)
    click.echo(f"  {mark}  {finding.name:<{_INDENT - 6}}{lines[0]}")
    for line in lines[1:]:
        click.echo(" " * _INDENT + line)
