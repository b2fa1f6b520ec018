"""What follows the encoder in a sentence-embedding model: pooling, dense layers, normalisation.

The steps come from modules.json and the folders that it names, in both generations of
sentence-transformers' formats. A step that this engine does not know is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from minibert.arguments import is_integer
from minibert.config import read_json
from minibert.errors import ConfigError, WeightsError
from minibert.ops.interface import Activation, Array, Ops, PoolMode
from minibert.weights.checkpoint import LinearWeights, require_finite
from minibert.weights.tensors import FLOAT_DTYPES, open_tensors, to_float32

MODULE_NAMES = frozenset({"module_input_name", "module_output_name"})
"""Keys of what a module reads and writes."""

POOL_MODES: tuple[PoolMode, ...] = get_args(PoolMode)

# Booleans of the older format, in the order in which several are concatenated.
_OLD_KEYS: Mapping[str, PoolMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_DENSE_ACTIVATIONS: Mapping[str, Activation | None] = {
    "Identity": None,
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """One vector per text, or several side by side.

    Attributes:
        modes: concatenated in this order.
        include_prompt: False leaves the prompt's tokens out.
    """

    modes: tuple[PoolMode, ...] = ("mean",)
    include_prompt: bool = True

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, hidden_size: int, source: str = "pooling config"
    ) -> Pooling:
        """Read 1_Pooling/config.json, old keys or new.

        Raises:
            ConfigError: an unknown key or mode, or a dimension that is not the encoder's.
        """
        known = {
            "word_embedding_dimension",
            "embedding_dimension",
            "pooling_mode",
            "include_prompt",
            *_OLD_KEYS,
        }
        refuse_unknown(source, values, known)
        for key in ("word_embedding_dimension", "embedding_dimension"):
            if key in values and values[key] != hidden_size:
                raise ConfigError(
                    f"{source}: {key} must be hidden_size = {hidden_size}, got {values[key]!r}"
                )
        include_prompt = values.get("include_prompt", True)
        if not isinstance(include_prompt, bool):
            raise ConfigError(f"{source}: include_prompt must be a boolean, got {include_prompt!r}")
        if "pooling_mode" in values:
            named = values["pooling_mode"]
            modes = [named] if isinstance(named, str) else named
        else:
            for key in _OLD_KEYS:
                if not isinstance(values.get(key, False), bool):
                    raise ConfigError(f"{source}: {key} must be a boolean, got {values[key]!r}")
            modes = [mode for key, mode in _OLD_KEYS.items() if values.get(key)] or ["mean"]
        if (
            not isinstance(modes, list)
            or not modes
            or any(not isinstance(mode, str) or mode not in POOL_MODES for mode in modes)
        ):
            raise ConfigError(
                f"{source}: pooling_mode must be one or several of {', '.join(POOL_MODES)}, "
                f"got {values.get('pooling_mode')!r}"
            )
        return cls(tuple(cast("list[PoolMode]", modes)), include_prompt)


@dataclass(frozen=True, slots=True)
class Dense:
    """activation(x @ weight.T + bias), plus x (or its projection) where `residual` says so."""

    weights: LinearWeights
    activation: Activation | None
    use_residual: bool = False
    residual: LinearWeights | None = None


@dataclass(frozen=True, slots=True)
class Normalize:
    """Vectors of length 1."""


Step = Pooling | Dense | Normalize


class PreparedStep(NamedTuple):
    """A step and its weights as the device laid them out."""

    step: Step
    linear: Any = None
    residual: Any = None


def prepare_steps(ops: Ops, steps: Sequence[Step]) -> tuple[PreparedStep, ...]:
    """Hand the weights of the steps to the device, once, at load."""
    prepared = []
    for i, step in enumerate(steps):
        linear = residual = None
        if isinstance(step, Dense):
            weights = step.weights
            linear = ops.prepare_linear(weights.weight, weights.bias, name=f"dense.{i}")
            if step.residual is not None:
                projection = step.residual.weight
                residual = ops.prepare_linear(projection, None, name=f"dense.{i}.residual")
        prepared.append(PreparedStep(step, linear, residual))
    return tuple(prepared)


def apply_steps(ops: Ops, hidden_states: Array, batch: Any, steps: Sequence[PreparedStep]) -> Array:
    """From hidden states to one vector per text.

    Args:
        ops: a stream.
        hidden_states: (num_tokens, hidden_size), packed.
        batch: from `ops.upload`.
        steps: the first is a Pooling.

    Returns:
        (num_seqs, dimension).
    """
    rows = hidden_states  # (num_tokens, hidden_size)
    for prepared in steps:
        step = prepared.step
        if isinstance(step, Pooling):
            pooled = [ops.pool(hidden_states, batch, mode) for mode in step.modes]
            rows = ops.concatenate(pooled)  # (num_seqs, hidden_size * len(modes))
        elif isinstance(step, Dense):
            residual = None
            if step.use_residual:
                residual = rows
                if prepared.residual is not None:
                    residual = ops.linear(rows, prepared.residual)
            rows = ops.linear(
                rows, prepared.linear, activation=step.activation, residual=residual
            )  # (num_seqs, out_features)
        else:
            rows = ops.normalize(rows)
    return rows


def skipped_tokens(steps: Sequence[Step], prompt_tokens: int) -> int:
    """Tokens at the start of every text that pooling leaves out."""
    excluded = any(isinstance(step, Pooling) and not step.include_prompt for step in steps)
    return prompt_tokens if excluded else 0


def output_dimension(steps: Sequence[Step], hidden_size: int) -> int:
    """Width of the sentence embedding."""
    width = hidden_size
    for step in steps:
        if isinstance(step, Pooling):
            width = hidden_size * len(step.modes)
        elif isinstance(step, Dense):
            width = step.weights.weight.shape[0]
    return width


def refuse_unknown(source: str, values: Mapping[str, Any], known: Set[str]) -> None:
    """Raise ConfigError where a file of settings has keys that nobody reads."""
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{source}: keys must be among {sorted(known)}, got {unknown}")


def check_module_names(source: str, values: Mapping[str, Any]) -> None:
    """Raise ConfigError where a module reads or writes something else than the embedding."""
    for key in sorted(MODULE_NAMES):
        if values.get(key) not in (None, "sentence_embedding"):
            raise ConfigError(f"{source}: {key} must be sentence_embedding, got {values[key]!r}")


def load_dense(folder: Path, width: int) -> Dense:
    """Read a Dense module's folder.

    Args:
        folder: holds config.json and model.safetensors.
        width: dimension that comes in.

    Raises:
        ConfigError: an unknown key or activation, or a dimension that does not fit.
        WeightsError: a missing, misshapen or surplus tensor.
    """
    source = str(folder / "config.json")
    values = read_json(folder / "config.json")
    known = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
    refuse_unknown(source, values, known | MODULE_NAMES)
    check_module_names(source, values)
    if values.get("in_features") != width:
        raise ConfigError(
            f"{source}: in_features must be {width}, got {values.get('in_features')!r}"
        )
    out_features = values.get("out_features")
    if not is_integer(out_features) or out_features < 1:
        raise ConfigError(f"{source}: out_features must be a number, got {out_features!r}")
    path = str(values.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = path.rsplit(".", 1)[-1]
    if not path.startswith("torch.nn.") or activation not in _DENSE_ACTIVATIONS:
        raise ConfigError(
            f"{source}: activation_function must be one of {', '.join(_DENSE_ACTIVATIONS)} "
            f"of torch.nn, got {path!r}"
        )
    bias, use_residual = values.get("bias", True), values.get("use_residual", False)
    for key, value in (("bias", bias), ("use_residual", use_residual)):
        if not isinstance(value, bool):
            raise ConfigError(f"{source}: {key} must be a boolean, got {value!r}")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out_features, width)}
    if bias:
        shapes["linear.bias"] = (out_features,)
    if use_residual and width != out_features:
        shapes["residual.weight"] = (out_features, width)
    arrays = _read_exactly(folder, shapes)
    residual = arrays.get("residual.weight")
    return Dense(
        LinearWeights(arrays["linear.weight"], arrays.get("linear.bias")),
        _DENSE_ACTIVATIONS[activation],
        use_residual,
        None if residual is None else LinearWeights(residual, None),
    )


def _read_exactly(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    tensors = open_tensors(folder)
    if set(tensors) != set(shapes):
        raise WeightsError(
            f"{folder} must hold the tensors {sorted(shapes)}, got {sorted(tensors)}"
        )
    arrays = {}
    for name, shape in shapes.items():
        entry = tensors[name]
        if entry.dtype not in FLOAT_DTYPES:
            raise WeightsError(f"{folder}: {name} must be {FLOAT_DTYPES}, got {entry.dtype}")
        if entry.data.shape != shape:
            raise WeightsError(f"{folder}: {name} must have shape {shape}, got {entry.data.shape}")
        arrays[name] = to_float32(entry)
        require_finite(f"{folder}: {name}", arrays[name])
    return arrays
