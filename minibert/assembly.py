"""From a loaded model and the caller's wishes to the parts that an engine is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from minibert.arguments import check_truncate_dim
from minibert.errors import InputError
from minibert.loading import LoadedModel
from minibert.ops.select import DeviceOptions, close_all, keep_packed, make_devices
from minibert.pooling import output_dimension
from minibert.preparation import Preparation, Truncation
from minibert.runner import Runner, make_runner
from minibert.similarity import SIMILARITIES
from minibert.tokenizer import TruncationSide

_LINEARS = ("qkv", "attention_output", "intermediate", "output")


class Wishes(NamedTuple):
    """What a caller of `Engine.from_pretrained` asks for; its docstring says what each means."""

    device: str
    devices: Sequence[str] | None
    options: DeviceOptions
    max_batch_tokens: int | None
    memory_limit: int | None
    truncation: Truncation
    truncation_side: TruncationSide
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    similarity_function: str | None


class Parts(NamedTuple):
    """What `Engine` holds."""

    loaded: LoadedModel
    runner: Runner
    preparation: Preparation
    device_reason: str
    truncate_dim: int | None
    similarity_function: str


def assemble(loaded: LoadedModel, wishes: Wishes) -> Parts:
    """Make devices, hand them the weights, and settle what the model's files leave open.

    Raises:
        DeviceError: a device cannot do what was asked.
        MemoryLimitError: memory_limit is too small for one token.
        InputError: a wish that this model cannot meet. No device is left open.
    """
    _preparation(loaded, wishes)  # refuses before a device is made
    function = wishes.similarity_function or loaded.sentence.similarity
    if function not in SIMILARITIES:
        raise InputError(
            f"similarity_function must be one of {', '.join(SIMILARITIES)}, got {function!r}"
        )
    check_truncate_dim(
        wishes.truncate_dim, output_dimension(loaded.steps, loaded.config.hidden_size)
    )
    known = [f"layer.{i}.{name}" for i in range(len(loaded.weights.layers)) for name in _LINEARS]
    unknown = sorted(set(wishes.options.float_layers).difference(known))
    if unknown:
        raise InputError(
            f"float_layers must be of {known[0]} to {known[-1]}, got {', '.join(unknown)}"
        )
    folder = loaded.weights.files[0].parent
    devices, reason = make_devices(
        wishes.device,
        wishes.devices,
        wishes.options,
        quantized=loaded.weights.quantized,
        files=sorted({*folder.rglob("*.safetensors"), *folder.rglob("*.json")})
        if wishes.options.packed_weights
        else (),
    )
    try:
        runner = make_runner(
            devices,
            loaded,
            max_batch_tokens=wishes.max_batch_tokens,
            memory_limit=wishes.memory_limit,
        )
        keep_packed(devices)
        loaded = replace(loaded, weights=loaded.weights.shapes_only())
    except BaseException:
        close_all(devices)
        raise
    dimension = wishes.truncate_dim or loaded.sentence.truncate_dim
    return Parts(loaded, runner, _preparation(loaded, wishes), reason, dimension, function)


def _preparation(loaded: LoadedModel, wishes: Wishes) -> Preparation:
    prompts = {**loaded.sentence.prompts, **wishes.prompts}
    default = wishes.default_prompt_name or loaded.sentence.default_prompt_name
    if default is not None and (not isinstance(default, str) or default not in prompts):
        known = f"one of {sorted(prompts)}" if prompts else "None: there are no prompts"
        raise InputError(f"default_prompt_name must be {known}, got {default!r}")
    return Preparation(
        loaded,
        prompts=prompts,
        default_prompt_name=default,
        truncation=wishes.truncation,
        truncation_side=wishes.truncation_side,
    )
