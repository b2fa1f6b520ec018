"""Fixed ranges of the layers' inputs: `minibert quantize --static`, from the file to the vector.

What they must give is computed by transformers' own model in float64, each linear layer's input
quantised by a hook with the ranges that stand in the file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import Engine
from minibert.compress.quantize import QuantizeOptions, quantize_model
from minibert.errors import ConfigError, InputError, WeightsError
from minibert.kernels.cpu.loader import available, choose_path
from minibert.loading import load_model
from tests.cpu_encoder import needs_kernels
from tests.test_quantize import texts

METHODS = ("minmax", "percentile", "mse", "kl")
QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def original(tiny: Any) -> Path:
    folder: Path = tiny("bert", hidden_size=64, intermediate_size=96)
    return folder


@pytest.fixture(scope="module")
def static(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with fixed ranges, made narrower in the file so that many values saturate."""
    folder = tmp_path_factory.mktemp("static") / "q"
    options = QuantizeOptions(static="minmax", min_cosine=None, embedding_bits=32)
    quantize_model(original, folder, options=options, texts=texts())
    change(folder, lambda tensors: {n: narrower(n, tensors[n]) for n in tensors})
    return folder


def narrower(name: str, values: Any) -> Any:
    return values * np.float32(0.6) if name.endswith("input_range") else values


def change(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tensors = edit(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def expected(original: Path, static: Path, steps: int | None, given: list[str]) -> Any:
    """Mean-pooled vectors of transformers' model in float64; `steps` None: float activations."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    tensors = load_file(static / "model.safetensors")
    model = transformers.BertModel.from_pretrained(original).double().eval()
    for name, module in model.named_modules():
        if f"{name}.weight_q" not in tensors:
            continue
        weight = (
            tensors[f"{name}.weight_q"] * tensors[f"{name}.weight_scale"].astype(float)[:, None]
        )
        module.weight.data = torch.from_numpy(weight)
        low, high = map(float, tensors[f"{name}.input_range"])

        def quantized(_: Any, args: Any, low: float = low, high: float = high) -> Any:
            unit = (high - low) / (steps or 1)
            zero_point = round(-low / unit)
            q = torch.clamp(torch.round(args[0] / unit) + zero_point, 0, steps)
            return ((q - zero_point) * unit,)

        if steps is not None:
            module.register_forward_pre_hook(quantized)
    tokenizer = Tokenizer.from_file(str(original / "tokenizer.json"))
    rows = []
    with torch.no_grad():
        for text in given:
            ids = torch.tensor([tokenizer.encode(text).ids])
            rows.append(model(ids).last_hidden_state[0].mean(0).numpy())
    found = np.stack(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def distance(a: Any, b: Any) -> float:
    """Root mean square over texts of the distance of unit vectors."""
    a = a / np.linalg.norm(a.astype(float), axis=1, keepdims=True)
    return float(np.sqrt(np.square(a - b).sum(axis=1).mean()))


# ---- parity ------------------------------------------------------------------------------------
def test_numpy_in_float64_is_the_hooked_model(original: Path, static: Path) -> None:
    given = texts(8)
    with Engine.from_pretrained(static, device="numpy", dtype="float64") as engine:
        found = engine.encode(given)
    # float64 all the way but for the float32 of the result: 2^-24 in each of 64 places.
    assert distance(found, expected(original, static, 255, given)) < 2.0**-24 * 8


def devices() -> list[Any]:
    on_cpu = [] if not available()[0] else ["cpu"]
    return [*on_cpu, "numpy", "emulator"]


@pytest.mark.parametrize("device", devices())
def test_every_device_follows_the_fixed_ranges(original: Path, static: Path, device: str) -> None:
    given = texts(8)
    steps = 255
    if device == "cpu" and choose_path(None).name in ("avx2", "avx512"):
        steps = 127
    with Engine.from_pretrained(static, device=device) as engine:
        found = engine.encode(given)
    exact = expected(original, static, steps, given)
    clipped = distance(expected(original, static, None, given), exact)
    # Ranges this narrow move the vectors by `clipped`; whoever took each token's own range would
    # be that far away. float16 between the emulator's layers, and values that rounding takes over
    # the edge of a step, move them by far less.
    assert clipped > 0.05
    assert distance(found, exact) < 0.1 * clipped


def test_float_layers_leave_the_ranges_aside(original: Path, static: Path) -> None:
    given = texts(6)
    if not available()[0]:
        pytest.skip("NumPy has no int8 to be told from")
    with Engine.from_pretrained(static, device="cpu", dtype="float32") as engine:
        found = engine.encode(given)
    assert distance(found, expected(original, static, None, given)) < 1e-5  # float32, 3 layers


@pytest.mark.parametrize("device", devices())
def test_alone_equals_together(static: Path, device: str) -> None:
    given = texts(5)
    with Engine.from_pretrained(static, device=device) as engine:
        together = engine.encode(given)
        alone = np.stack([engine.encode(text) for text in given])
        backwards = engine.encode(given[::-1])[::-1]
    assert together.tobytes() == alone.tobytes() == np.ascontiguousarray(backwards).tobytes()


@needs_kernels
def test_a_fresh_process_and_a_packed_file_give_the_same_bytes(
    static: Path, tmp_path: Path
) -> None:
    given = texts(6)
    with Engine.from_pretrained(static) as engine:
        assert "12 of 12 layers' ranges fixed by minmax" in engine.explain()
        here = engine.encode(given)
    code = (
        "import sys; from minibert import Engine; import numpy as np; "
        "np.save(sys.argv[2], Engine.from_pretrained(sys.argv[1]).encode(sys.argv[3:]))"
    )
    command = [sys.executable, "-c", code, str(static), str(tmp_path / "rows.npy"), *given]
    subprocess.run(command, check=True)
    assert np.load(tmp_path / "rows.npy").tobytes() == here.tobytes()
    for _ in range(2):  # written, then read
        with Engine.from_pretrained(static, packed_weights=tmp_path) as engine:
            assert engine.encode(given).tobytes() == here.tobytes()


# ---- what the command makes --------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_ranges_in_the_file_are_those_of_the_inputs(
    original: Path, tmp_path: Path, method: str
) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer

    options = QuantizeOptions(static=method, min_cosine=None)
    given = texts()
    result = quantize_model(original, tmp_path / "q", options=options, texts=given)
    assert {layer.state for layer in result.layers} == {"int8"}
    assert 0.5 < result.report.fidelity.mean_cosine < 1.0
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    ranges = {n: v for n, v in tensors.items() if n.endswith("input_range")}
    assert len(ranges) == 3 * 6 and {v.dtype.str for v in ranges.values()} == {"<f4"}
    name = "encoder.layer.1.intermediate.dense"
    seen: list[Any] = []
    model = transformers.BertModel.from_pretrained(original).double().eval()
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokenizer = Tokenizer.from_file(str(original / "tokenizer.json"))
    calibration = [text for i, text in enumerate(given) if i % 4 != 3]
    with torch.no_grad():
        for text in calibration:
            model(torch.tensor([tokenizer.encode(text).ids]))
    values = np.concatenate([x.numpy().reshape(-1) for x in seen])
    low, high = ranges[f"{name}.input_range"]
    width = np.abs(values).max() / 1024  # bins are at most this wide: their limit may be twice it
    assert values.min() - 1e-4 <= low < 0 < high <= values.max() + 1e-4
    if method == "minmax":
        assert low == pytest.approx(values.min(), abs=1e-4)
        assert high == pytest.approx(values.max(), abs=1e-4)
    elif method == "percentile":
        share = np.quantile(np.abs(values), 0.9999, method="inverted_cdf")
        assert max(high, -low) == pytest.approx(share, abs=2 * width)


@needs_kernels
def test_the_gate_gives_the_worst_layers_their_own_ranges_back(
    original: Path, tmp_path: Path
) -> None:
    plain = QuantizeOptions(static="minmax", min_cosine=None, embedding_bits=32)
    free = quantize_model(original, tmp_path / "a", options=plain, texts=texts())
    reached = free.report.fidelity.mean_cosine
    options = QuantizeOptions(
        static="minmax", min_cosine=1 - 0.8 * (1 - reached), embedding_bits=32
    )
    gated = quantize_model(original, tmp_path / "b", options=options, texts=texts())
    dynamic = [n.name for n in gated.layers if n.state == "int8, each token's own range"]
    assert 0 < len(dynamic) < 12
    config = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    assert (config["static"], config["dynamic_layers"]) == ("minmax", dynamic)
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    with_range = sum(name.endswith("input_range") for name in tensors)
    parts = sum(3 if name.endswith("qkv") else 1 for name in dynamic)
    assert with_range == 3 * 6 - parts
    assert gated.report.fidelity.mean_cosine > reached
    with Engine.from_pretrained(tmp_path / "b") as engine:
        assert f"{12 - len(dynamic)} of 12 layers' ranges" in engine.explain()


# ---- what is refused ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"static": "entropy"}, "static must be one of"),
        ({"static": "mse", "bits": 4}, "8 bits"),
        ({"static": "mse", "migrate": True}, "migrate"),
    ],
)
def test_options_are_checked(keywords: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        QuantizeOptions(**keywords)


def test_a_model_with_fixed_ranges_is_not_quantized_again(static: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantized already"):
        quantize_model(static, tmp_path / "x", options=QuantizeOptions(static="mse"), texts=texts())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (None, r"must exist for layer\.0\.qkv.*missing"),
        (np.array([np.nan, 1], np.float32), "low <= 0 <= high.*nan"),
        (np.array([-1, np.inf], np.float32), "low <= 0 <= high.*inf"),
        (np.array([2, -1], np.float32), "low <= 0 <= high"),
        (np.array([0.5, 1], np.float32), "low <= 0 <= high"),
        (np.array([0, 0], np.float32), "1e-30"),
        (np.array([-1, 1], np.float16), r"F32 \(2,\), got F16"),
        (np.array([-1, 1, 2], np.float32), r"F32 \(2,\), got F32 \(3,\)"),
        (np.array([-1, 1], np.float32), "one for query, key, value of layer 0"),
    ],
)
def test_damaged_ranges_are_named(static: Path, tmp_path: Path, values: Any, word: str) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(static, folder)

    def damage(tensors: dict[str, Any]) -> dict[str, Any]:
        del tensors[f"{QUERY}.input_range"]
        return tensors if values is None else {**tensors, f"{QUERY}.input_range": values}

    change(folder, damage)
    with pytest.raises(WeightsError, match=word):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"static": None}, ConfigError, "static must be one of"),
        ({"static": "best"}, ConfigError, "static must be one of.*best"),
        ({"weight_bits": 4}, ConfigError, "weight_bits 8"),
        ({"dynamic_layers": "layer.0.qkv"}, ConfigError, "list of layers"),
        ({"static": ...}, ConfigError, "dynamic_layers must come with static"),
        ({"static": ..., "dynamic_layers": ...}, WeightsError, "must not exist.*it is there"),
        ({"dynamic_layers": ["layer.2.output"]}, WeightsError, "must not exist.*layer.2.output"),
        ({"float_layers": ["layer.1.qkv"]}, WeightsError, "must not exist.*layer.1.qkv"),
    ],
)
def test_ranges_and_configuration_must_agree(
    static: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], word: str
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(static, folder)
    config = json.loads((folder / "config.json").read_text())
    found = {**config["quantization_config"], **changes}
    config["quantization_config"] = {k: v for k, v in found.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=word):
        load_model(folder)
