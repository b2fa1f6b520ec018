"""From a loaded model and the caller's wishes to the parts that an engine is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from minibert.arguments import check_truncate_dim
from minibert.errors import InputError, WeightsError
from minibert.loading import LoadedModel, OpenedModel, add_tokenizer
from minibert.ops.select import DeviceOptions, close_all, keep_packed, make_devices
from minibert.pooling import output_dimension
from minibert.preparation import Preparation, Truncation
from minibert.runner import Runner, make_runner, prepare_model
from minibert.sentence_config import DEFAULT_PROMPTS
from minibert.similarity import SIMILARITIES
from minibert.tokenizer import TruncationSide
from minibert.weights.checkpoint import load_encoder

if TYPE_CHECKING:
    from minibert.kernels.cpu.background import Background

_LINEARS = ("qkv", "attention_output", "intermediate", "output")


class Wishes(NamedTuple):
    """What a caller of `Engine.from_pretrained` asks for; its docstring says what each means."""

    device: str
    devices: Sequence[str] | None
    options: DeviceOptions
    max_batch_tokens: int | None
    memory_limit: int | None
    max_length: int | None
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


def assemble(opened: OpenedModel, wishes: Wishes, background: Background | None) -> Parts:
    """Make devices, hand them the weights, and settle what the model's files leave open.

    The tokenizer is read while the background still checks the weights, and lays them out.

    Args:
        opened: from `open_model`.
        wishes: of the caller.
        background: that `opened` was given.

    Raises:
        CheckpointError: the tokenizer's files are damaged, or a weight is not finite.
        DeviceError: a device cannot do what was asked.
        MemoryLimitError: memory_limit is too small for one token.
        InputError: a wish that this model cannot meet. No device is left open.
    """
    prompts, default_prompt_name = _prompts(opened, wishes)
    function = wishes.similarity_function or opened.sentence.similarity
    if function not in SIMILARITIES:
        raise InputError(
            f"similarity_function must be one of {', '.join(SIMILARITIES)}, got {function!r}"
        )
    check_truncate_dim(
        wishes.truncate_dim, output_dimension(opened.steps, opened.config.hidden_size)
    )
    known = [f"layer.{i}.{name}" for i in range(len(opened.weights.layers)) for name in _LINEARS]
    unknown = sorted(set(wishes.options.float_layers).difference(known))
    if unknown:
        raise InputError(
            f"float_layers must be of {known[0]} to {known[-1]}, got {', '.join(unknown)}"
        )
    folder = opened.weights.files[0].parent
    devices, reason = make_devices(
        wishes.device,
        wishes.devices,
        wishes.options,
        quantized=opened.weights.quantized,
        files=sorted({*folder.rglob("*.safetensors"), *folder.rglob("*.json")})
        if wishes.options.packed_weights
        else (),
        background=background,
    )
    try:
        models = [prepare_model(ops, opened) for ops in devices]
        opened.weights.let_go()
        loaded = add_tokenizer(opened, wishes.max_length)
        if background is not None and not background.wait():
            load_encoder(opened.encoder_folder, opened.config)  # says which weights, and how many
            raise WeightsError(f"{folder} must hold finite weights, it changes while it is read")
        runner = make_runner(
            models,
            loaded,
            max_batch_tokens=wishes.max_batch_tokens,
            memory_limit=wishes.memory_limit,
        )
        keep_packed(devices)
        loaded = replace(loaded, weights=loaded.weights.shapes_only())
    except BaseException:
        close_all(devices)
        raise
    preparation = Preparation(
        loaded,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        truncation=wishes.truncation,
        truncation_side=wishes.truncation_side,
    )
    dimension = wishes.truncate_dim or loaded.sentence.truncate_dim
    return Parts(loaded, runner, preparation, reason, dimension, function)


def _prompts(opened: OpenedModel, wishes: Wishes) -> tuple[dict[str, str], str | None]:
    prompts = {**opened.sentence.prompts, **wishes.prompts}
    default = wishes.default_prompt_name or opened.sentence.default_prompt_name
    named = {*DEFAULT_PROMPTS, *prompts}
    if default is not None and (not isinstance(default, str) or default not in named):
        raise InputError(f"default_prompt_name must be one of {sorted(named)}, got {default!r}")
    return prompts, default
