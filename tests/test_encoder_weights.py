from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from minibert import Engine
from minibert.compress.quantize import QuantizeOptions, quantize_model
from minibert.config import EncoderConfig
from minibert.errors import WeightsError
from minibert.kernels.cpu.loader import native
from minibert.loading import load_model
from minibert.ops.cpu import CpuOps
from minibert.weights.checkpoint import EncoderWeights, load_encoder
from tests.checkpoints import edit_tensors
from tests.cpu_encoder import needs_kernels

QKV = "encoder.layer.{}.attention.self.{}.weight"


def by_layer(folder: Path) -> EncoderWeights:
    config = EncoderConfig.from_file(folder / "config.json")
    return load_encoder(folder, config, layer_by_layer=True)


def quantized(folder: Path, out: Path) -> dict[str, np.ndarray[Any, Any]]:
    options = QuantizeOptions(min_cosine=None)
    quantize_model(folder, out, options=options, texts=[f"text number {i}" for i in range(40)])
    return load_file(out / "model.safetensors")


def product(tensors: dict[str, np.ndarray[Any, Any]], name: str) -> np.ndarray[Any, Any]:
    """The matrix that a stored pair means, by its definition, in float64."""
    weight_q, scale = (
        tensors[next(n for n in tensors if n.endswith(name + part))] for part in ("_q", "_scale")
    )
    return weight_q.astype(np.float64) * scale.astype(np.float64)[:, None]


def test_layers_hold_shapes_until_they_are_read(tiny: Any) -> None:
    folder = tiny("bert")
    weights = by_layer(folder)
    files = load_file(folder / "model.safetensors")
    for i, shapes in enumerate(weights.layers):
        assert set(shapes.qkv.weight.strides) == {0}
        assert set(shapes.output_norm.weight.strides) == {0}
        layer = weights.layer(i)
        parts = [
            next(v for n, v in files.items() if n.endswith(QKV.format(i, part)))
            for part in ("query", "key", "value")
        ]
        assert np.array_equal(layer.qkv.weight, np.concatenate(parts))
        assert layer.qkv.weight.shape == shapes.qkv.weight.shape
        assert layer.intermediate.weight.shape == shapes.intermediate.weight.shape
    assert np.array_equal(weights.layer(0).qkv.weight, weights.layer(0).qkv.weight)  # and again
    whole = load_model(folder).weights
    assert weights.num_parameters == whole.num_parameters
    assert (weights.unused, weights.dtypes) == (whole.unused, whole.dtypes)
    assert weights.shapes_only().source is None


def test_stored_integers_are_read_as_their_exact_products(tiny: Any, tmp_path: Path) -> None:
    tensors = quantized(tiny("bert"), tmp_path / "q")
    weights = by_layer(tmp_path / "q")
    assert weights.quantized
    for i in range(len(weights.layers)):
        parts = [product(tensors, QKV.format(i, part)) for part in ("query", "key", "value")]
        assert np.array_equal(weights.layer(i).qkv.weight, np.concatenate(parts))


@needs_kernels
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_an_int8_file_is_laid_out_as_its_products_are(
    tiny: Any, tmp_path: Path, dtype: str
) -> None:
    tensors = quantized(tiny("bert"), tmp_path / "q")

    def packed(linear: Any) -> bytes:
        address, size = native().linear_memory(linear.handle)
        return ctypes.string_at(address, size)

    with Engine.from_pretrained(tmp_path / "q", device="cpu", dtype=dtype) as engine:
        layers = engine._runner.models[0].parameters.layers
        found = [packed(part) for layer in layers for part in (layer.intermediate, layer.output)]
    names = [
        f"layer.{i}.{part}.dense.weight"
        for i in range(len(layers))
        for part in ("intermediate", "output")
    ]
    for laid_out, name in zip(found, names, strict=True):
        weight = product(tensors, name).astype(np.float32)
        expected = CpuOps(dtype).prepare_linear(weight, None, name="expected")
        assert laid_out == packed(expected), name


def test_an_infinite_weight_of_a_layer_is_refused_by_name(tiny: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "bad"))
    name = next(n for n in load_file(folder / "model.safetensors") if n.endswith("key.weight"))

    spoiled = load_file(folder / "model.safetensors")[name].copy()
    spoiled[1, 2] = np.inf
    edit_tensors(folder, **{name: spoiled})
    with pytest.raises(WeightsError, match=f"{name} must be finite, got 1"):
        Engine.from_pretrained(folder)
