"""What is built, and that it works where the checkout is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import minibert

CHECKOUT = Path(__file__).resolve().parents[1]
UNBUILT = {".git", ".venv", "build", "dist", "shared", "__pycache__", ".mypy_cache", ".hypothesis"}
INSTALLED_AS = {
    "minibert": "minibert",
    "kernels": "minibert/kernels",
    "weights": "minibert/weights",
}
PROGRAM = """
import importlib.metadata, importlib.util, pathlib
import minibert
from minibert.data import demo_texts, demo_vectors
from minibert.kernels import cuda
from minibert.weights import checkpoint
for name in ("kernels", "weights"):
    assert importlib.util.find_spec(name) is None, name
assert len(demo_texts()) > 50 and demo_vectors().ndim == 2
assert importlib.metadata.version("minibert-engine") == minibert.__version__
assert minibert.Engine.__module__ == "minibert.engine"
print(pathlib.Path(minibert.__file__).resolve().parent)
"""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, links included, in which building leaves no trace here."""
    copy = tmp_path_factory.mktemp("sources") / "checkout"

    def unwanted(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name in UNBUILT or name.endswith((".egg-info", ".so"))}

    shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=unwanted)
    return copy


@pytest.fixture(scope="session")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def wheel_of(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def expected_files() -> set[str]:
    """Names in the wheel of every source file that a package of ours consists of."""
    names = set()
    for top, installed in INSTALLED_AS.items():
        for path in (CHECKOUT / top).rglob("*"):
            inside = path.relative_to(CHECKOUT / top)
            linked = top == "minibert" and inside.parts[0] in ("kernels", "weights")
            if path.suffix in (".py", ".cu", ".cuh", ".npy", ".txt", ".typed") and not linked:
                names.add(f"{installed}/{inside.as_posix()}")
    return names


def test_the_wheel_holds_every_source_file_and_nothing_else(built: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel_of(built)).namelist() if name[-1] != "/"}
    info = f"minibert_engine-{minibert.__version__}.dist-info/"
    extension = sysconfig.get_config_var("SHLIB_SUFFIX") or ".so"
    files = {name for name in names if not name.startswith(info) and not name.endswith(extension)}
    assert files == expected_files()
    assert {name.split("/")[0] for name in names} == {"minibert", info.rstrip("/")}
    assert {
        "minibert/py.typed",
        "minibert/data/texts.txt",
        "minibert/data/wordnet_license.txt",
    } <= files
    assert f"{info}licenses/LICENSE" in names


def test_the_wheel_names_the_distribution_and_the_script(built: Path) -> None:
    assert wheel_of(built).name.startswith(f"minibert_engine-{minibert.__version__}-")
    with zipfile.ZipFile(wheel_of(built)) as wheel:
        info = f"minibert_engine-{minibert.__version__}.dist-info/"
        scripts = wheel.read(f"{info}entry_points.txt").decode()
        metadata = wheel.read(f"{info}METADATA").decode()
    assert "minibert = minibert.cli:main" in scripts
    assert "\nName: minibert-engine\n" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    always = {line.split()[1].split(">")[0] for line in required if "extra ==" not in line}
    assert always == {"click", "numpy", "safetensors", "tokenizers", "tqdm"}


def test_the_source_distribution_holds_the_tests_and_what_runs_them(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"Makefile", "README.md", "LICENSE", "pyproject.toml", "kernels/__init__.py"} <= names
    assert {"tests/test_packaging.py", "tests/cli/conftest.py", "minibert/data/texts.txt"} <= names
    assert {
        "benchmarks/gpu/peaks.cu",
        "benchmarks/gpu/costs.cu",
        "examples/find_a_race.cu",
    } <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so"))]


def fresh_environment(folder: Path) -> Path:
    """Make a virtual environment that sees this one's packages, and return its Python."""
    # Without pip, and so without a setuptools of its own that would hide a newer one.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    ours = Path(purelib.stdout.strip(), "packages_of_the_tests.pth")
    ours.write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run_elsewhere(python: Path, folder: Path) -> Path:
    """Run the program and the script in `folder`; return the folder that minibert came from."""
    done = subprocess.run(
        [python, "-c", PROGRAM],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version = subprocess.run(
        [python.parent / "minibert", "--version"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout == f"minibert, version {minibert.__version__}\n"
    return Path(done.stdout.strip())


def test_an_installed_wheel_works_from_another_folder(built: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "env")
    install(python, wheel_of(built))
    assert (tmp_path / "env").resolve() in run_elsewhere(python, tmp_path).parents


def test_an_editable_install_works_from_another_folder(sources: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "env")
    install(python, "--editable", sources)
    assert run_elsewhere(python, tmp_path) == sources.resolve() / "minibert"
