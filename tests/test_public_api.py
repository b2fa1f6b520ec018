"""What `import minibert` gives, and what it does not bring with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import minibert
from minibert import errors


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_public_names_are_these() -> None:
    assert minibert.__all__ == ["Engine", "quantize_embeddings"]
    for name in minibert.__all__:
        assert getattr(minibert, name) is not None
        assert name in dir(minibert)


def test_the_version_is_that_of_the_distribution() -> None:
    project = Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    assert f'\nversion = "{minibert.__version__}"\n' in project


def test_every_error_is_of_one_tree() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, Warning if name.endswith("Warning") else errors.MinibertError)
        assert kind.__doc__


def test_importing_minibert_brings_no_heavy_module() -> None:
    heavy = {"numpy", "tokenizers", "safetensors", "huggingface_hub", "tqdm", "click", "cupy"}
    assert not heavy & loaded_after("import minibert")


def test_the_engine_brings_no_framework_and_no_network_client() -> None:
    unwanted = {
        *("torch", "transformers", "sentence_transformers", "scipy", "cupy", "onnxruntime"),
        *("huggingface_hub", "httpx", "requests", "click", "tqdm", "pyarrow", "asyncio"),
    }
    assert not unwanted & loaded_after("from minibert import Engine")


def test_a_first_vector_needs_none_of_these(tiny: Any) -> None:
    unwanted = {"logging", "concurrent", "inspect", "email", "tqdm", "click"}
    numpys_own = loaded_after("import numpy, tokenizers, safetensors")
    encode = (
        f"from minibert import Engine; Engine.from_pretrained({str(tiny('bert'))!r}).encode('a')"
    )
    assert not (unwanted - numpys_own) & loaded_after(encode)
