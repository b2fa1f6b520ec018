"""Virtual environments of the contenders, made once below build/peers, and their converted models.

Whatever cannot be installed or converted becomes an `EnvironmentProblem` with the reason; it takes
away the contenders that need it and nothing else. pip uses the index that it is configured for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "sentence-transformers": ("torch==2.13.0", "sentence-transformers==6.2.0"),
    "onnxruntime": ("onnxruntime==1.32.0", "tokenizers", "numpy"),
    "openvino": ("openvino==2026.4.1", "tokenizers", "numpy"),
    "ctranslate2": ("ctranslate2==4.8.5", "tokenizers", "numpy"),
    "fastembed": ("fastembed==0.9.1",),
    "minibert": (str(CHECKOUT),),
    "convert": ("onnx", "onnxruntime==1.32.0", "openvino==2026.4.1", "ctranslate2==4.8.5", "nncf"),
}
CONVERTER = "convert"  # sees the packages of sentence-transformers besides its own
SOURCES = ("minibert", "kernels", "weights")

GRAPHS: dict[str, tuple[str | None, str]] = {
    "onnx": (None, "model.onnx"),
    "onnx-fused": ("onnx", "model.onnx"),
    "onnx-int8": ("onnx-fused", "model.onnx"),
    "onnx-int8-narrow": ("onnx-fused", "model.onnx"),
    "openvino": ("onnx", "model.xml"),
    "openvino-int8": ("openvino", "model.xml"),
    "ctranslate2": (None, "model"),
}
"""Step of peers/convert.py -> the step that its input comes from, and its file."""


class EnvironmentProblem(Exception):
    """An environment or a converted model cannot be had; the message is the reason."""


class Environments:
    """The environments below a folder."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Nothing is made yet.

        Args:
            folder: usually build/peers.
            say: receives a line before every slow step.
        """
        self.folder = folder.resolve()
        self._say = say
        self._problems: dict[str, str] = {}
        self._ready: dict[str, Path] = {}

    def python(self, name: str) -> Path:
        """The interpreter of an environment, made where it is missing or out of date.

        Looked at once: what changes in the checkout during a run does not change the run.

        Raises:
            EnvironmentProblem: pip or venv failed, now or earlier in this run.
        """
        if name in self._problems:
            raise EnvironmentProblem(self._problems[name])
        if name not in self._ready:
            self._ready[name] = self._made(name)
        return self._ready[name]

    def installed_bytes(self, name: str) -> int:
        """Size of site-packages without bytecode and without pip itself."""
        return installed_bytes(self.folder / name)

    def _made(self, name: str) -> Path:
        python = self.folder / name / "bin" / "python"
        stamp = self.folder / name / "installed.txt"
        wanted = self._wanted(name)
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
            return python
        try:
            self._make(name, python)
        except EnvironmentProblem as problem:
            self._problems[name] = str(problem)
            raise
        stamp.write_text(wanted, encoding="utf-8")
        return python

    def _wanted(self, name: str) -> str:
        wanted = "\n".join(REQUIREMENTS[name])
        return f"{wanted}\n{sources_digest()}" if name == "minibert" else wanted

    def _make(self, name: str, python: Path) -> None:
        base = self.python("sentence-transformers") if name == CONVERTER else None
        self._say(f"installing {name} into {self.folder.name}/{name}")
        if not python.exists():
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            run([sys.executable, "-m", "venv", str(self.folder / name)], "venv")
        if base is not None:
            link = site_packages(self.folder / name) / "sentence_transformers_environment.pth"
            link.write_text(f"{site_packages(base.parents[1])}\n", encoding="utf-8")
        command = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
        if name == "minibert":
            command += ["--force-reinstall", "--no-cache-dir"]
        run(command, "pip")


class Graphs:
    """One model, converted for the runtimes; kept below build/peers/graphs."""

    def __init__(
        self, environments: Environments, model: Path, calibration: Callable[[], Sequence[str]]
    ) -> None:
        """Nothing is converted yet.

        Args:
            environments: the converter is one of them.
            model: a folder.
            calibration: texts that int8 activations are calibrated on, when asked for.
        """
        self._environments = environments
        self._model = model
        self._calibration = calibration
        self._folder = environments.folder / "graphs" / f"{model.name}-{weights_digest(model)}"
        self._problems: dict[str, str] = {}

    def path(self, step: str) -> Path:
        """A converted model, made where it is missing.

        Raises:
            EnvironmentProblem: it, or one that it is made from, cannot be converted.
        """
        if step in self._problems:
            raise EnvironmentProblem(self._problems[step])
        source, file = GRAPHS[step]
        done = self._folder / step
        if not done.is_dir():
            try:
                self._convert(step, source, file, done)
            except EnvironmentProblem as problem:
                self._problems[step] = str(problem)
                raise
        return done / file

    def _convert(self, step: str, source: str | None, file: str, done: Path) -> None:
        given = [] if source is None else [str(self.path(source))]
        python = self._environments.python(CONVERTER)
        scratch = done.with_name(f"{step}.unfinished")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        texts = json.dumps(list(self._calibration()))
        (scratch / "calibration.json").write_text(texts, encoding="utf-8")
        self._environments._say(f"converting {self._model.name}: {step}")
        command = [str(python), str(PEERS / "convert.py"), step, str(self._model)]
        run([*command, str(scratch / file), *given], f"converting to {step}")
        scratch.rename(done)


def run(command: Sequence[str], what: str, *, timeout_s: float = 1800) -> None:
    """Run a command to its end.

    Raises:
        EnvironmentProblem: it failed; the message ends in the command's own last words.
    """
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"{what} failed: {type(error).__name__}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise EnvironmentProblem(tidy(f"{what} failed: {errors[-1]}"))


def tidy(reason: str) -> str:
    """A reason on one line, without folders of this machine, at most 300 characters."""
    for folder, name in ((CHECKOUT, "."), (Path.home(), "~"), (Path(sys.prefix), "python")):
        if len(folder.parts) > 1:
            reason = reason.replace(str(folder), name)
    return " ".join(reason.split())[:300]


def site_packages(environment: Path) -> Path:
    """Where an environment's packages lie.

    Raises:
        EnvironmentProblem: nowhere.
    """
    found = sorted(environment.glob("lib*/python*/site-packages"))
    if not found:
        raise EnvironmentProblem(f"{environment.name} has no site-packages")
    return found[0]


def installed_bytes(environment: Path) -> int:
    """Bytes of an environment's packages, without bytecode, pip and setuptools."""
    folder = site_packages(environment)
    total = 0
    for path in folder.rglob("*"):
        top = path.relative_to(folder).parts[0].split("-")[0]
        bytecode = path.suffix == ".pyc"
        tools = top in ("pip", "setuptools", "_distutils_hack", "pkg_resources")
        if not bytecode and not tools and path.is_file() and not path.is_symlink():
            total += path.stat().st_size
    return total


def sources_digest() -> str:
    """Digest of everything that the installed minibert is built from."""
    digest = hashlib.sha256()
    paths = [CHECKOUT / "pyproject.toml", CHECKOUT / "setup.py"]
    for folder in SOURCES:
        found = (CHECKOUT / folder).rglob("*")
        paths += sorted(p for p in found if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"))
    for path in filter(Path.is_file, paths):
        digest.update(path.relative_to(CHECKOUT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def weights_digest(model: Path) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a model's configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted([model / "config.json", *model.glob("*.safetensors")]):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
