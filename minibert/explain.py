"""The report of `engine.explain()`: every decision, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping

import minibert
from minibert.loading import LoadedModel
from minibert.pooling import Dense, Pooling
from minibert.preparation import Preparation
from minibert.runner import Runner


def explain(
    loaded: LoadedModel,
    runner: Runner,
    preparation: Preparation,
    *,
    device_reason: str,
    dimension: int,
    similarity_function: str,
) -> str:
    """Write the report, one decision a line."""
    counts = preparation.counts
    config, weights, budget = loaded.config, loaded.weights, runner.budget
    # A text above the budget is a batch by itself, refused where it passes the limit.
    most = max(loaded.max_length, budget.max_batch_tokens)
    scratch = runner.scratch_bytes(most, loaded.max_length, most)
    limit = budget.memory_limit
    each = " on each device" if len(runner.models) > 1 else ""
    scratch = scratch if limit is None else min(scratch, limit)
    rows = [
        ("model", str(loaded.folder)),
        (
            "encoder",
            f"{config.model_type}, {config.num_hidden_layers} layers, hidden_size "
            f"{config.hidden_size}, {_heads(loaded)}, {_widths(loaded)}, {config.hidden_act}"
            + (" (exact erf)" if config.hidden_act == "gelu" else ""),
        ),
        (
            "weights",
            f"{', '.join(path.name for path in weights.files)}: {weights.num_parameters:,} "
            f"parameters, {', '.join(weights.dtypes)} on disk",
        ),
        *_sparsity(loaded),
        *_static(loaded),
        ("not used", ", ".join(weights.unused) or "nothing: every tensor of the files is used"),
        (
            "tokenizer",
            f"{loaded.tokenizer.vocab_size:,} tokens, from {loaded.origins['tokenizer']}",
        ),
        *(("", note) for note in loaded.tokenizer.files.notes),
        (
            "max_length",
            f"{loaded.max_length} tokens, from {loaded.origins['max_length']}; "
            f"longer texts: {preparation.truncation}, cut on the {loaded.truncation_side} "
            f"({loaded.origins['truncation_side']})",
        ),
        ("positions", f"from {config.first_position}, {config.max_tokens} of them"),
        ("steps", f"{_steps(loaded)}, from {loaded.origins['pooling']}"),
        ("dimension", f"{dimension}, similarity {similarity_function}"),
        ("prompts", _prompts(preparation.prompts, preparation.default_prompt_name)),
        ("device", _device(runner, device_reason)),
        (
            "batches",
            f"at most {budget.max_batch_tokens:,} tokens or one text, {budget.num_streams} at "
            f"once{each}; scratch at most {scratch * budget.num_scratch / 1e6:.1f} MB{each}"
            + ("" if limit is None else f" (limit {limit * budget.num_scratch / 1e6:.1f} MB)"),
        ),
        (
            "so far",
            f"{counts['texts']:,} texts, {counts['tokens']:,} tokens, "
            f"{counts['truncated']:,} texts cut",
        ),
    ]
    lines = [f"minibert {minibert.__version__}"]
    lines += [f"  {name:<11} {value}" for name, value in rows]
    return "\n".join(lines)


def _device(runner: Runner, reason: str) -> str:
    """Which devices, and how many batches each has computed where there are several."""
    ops, count = runner.ops, len(runner.models)
    if count == 1:
        return f"{ops.name} ({reason}), {ops.dtype}"
    done = " + ".join(map(str, runner.batches))
    return f"{count} x {ops.name} ({reason}), {ops.dtype}; {done} batches so far"


def _heads(loaded: LoadedModel) -> str:
    heads = [layer.num_heads for layer in loaded.weights.layers]
    counts = str(heads[0]) if len(set(heads)) == 1 else "/".join(map(str, heads))
    return f"{counts} heads of {loaded.config.head_dim}"


def _sparsity(loaded: LoadedModel) -> list[tuple[str, str]]:
    found = loaded.config.sparsity
    if found is None:
        return []
    rule = f"{found.pattern}: {found.fraction:.0%} of the layers' weights are zero"
    return [("sparsity", f"{rule}, from config.json")]


def _static(loaded: LoadedModel) -> list[tuple[str, str]]:
    method = (loaded.config.quantization or {}).get("static")
    if method is None:
        return []
    layers = loaded.weights.layers
    every = [x for y in layers for x in (y.qkv, y.attention_output, y.intermediate, y.output)]
    fixed = sum(linear.input_range is not None for linear in every)
    return [("activations", f"{fixed} of {len(every)} layers' ranges fixed by {method}")]


def _widths(loaded: LoadedModel) -> str:
    widths = [layer.intermediate.weight.shape[0] for layer in loaded.weights.layers]
    shown = str(widths[0]) if len(set(widths)) == 1 else "/".join(map(str, widths))
    return f"feed-forward {shown}"


def _steps(loaded: LoadedModel) -> str:
    names = []
    for step in loaded.steps:
        if isinstance(step, Pooling):
            without = "" if step.include_prompt else " without the prompt"
            names.append(f"pooling {' + '.join(step.modes)}{without}")
        elif isinstance(step, Dense):
            out_features, in_features = step.weights.weight.shape
            names.append(f"dense {in_features} -> {out_features} {step.activation or ''}".rstrip())
        else:
            names.append("normalize")
    return ", ".join(names)


def _prompts(prompts: Mapping[str, str], default: str | None) -> str:
    if not any(prompts.values()):
        return "none"
    shown = ", ".join(f"{name} = {text!r}" for name, text in prompts.items())
    return f"{shown}; default {default or 'none'}"
