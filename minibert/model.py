"""The forward pass of a BERT-family encoder, written once against `Ops`.

Bottom-up pure functions; each line that changes a shape ends in it. num_tokens are those of all
texts of the batch, packed; num_heads and intermediate_size are the layer's own.

Devlin et al., "BERT", 2018 (arXiv 1810.04805); Vaswani et al., 2017 (arXiv 1706.03762).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minibert.config import EncoderConfig
from minibert.ops.interface import Array, ForwardShape, Ops
from minibert.weights.checkpoint import EncoderWeights, LayerWeights, LinearWeights


class LayerParameters(NamedTuple):
    """One layer's weights as its Ops laid them out, and the layer's own shape."""

    num_heads: int
    intermediate_size: int
    qkv: Any
    attention_output: Any
    attention_norm: Any
    intermediate: Any
    output: Any
    output_norm: Any


class EncoderParameters(NamedTuple):
    """An encoder's weights as its Ops laid them out; tables are word, position, token type.

    `head_dim` is the width of a head as it is laid out, zeros included.
    """

    head_dim: int
    tables: tuple[Any, Any, Any]
    embedding_norm: Any
    projection: Any
    layers: tuple[LayerParameters, ...]


def prepare(ops: Ops, weights: EncoderWeights, config: EncoderConfig) -> EncoderParameters:
    """Hand all weights to the device, once, at load."""
    eps = config.layer_norm_eps
    multiple = ops.head_dim_multiple
    head_dim = -(-config.head_dim // multiple) * multiple

    pattern = None if config.sparsity is None else config.sparsity.pattern

    def linear(name: str, source: LinearWeights) -> Any:
        known: dict[str, Any] = {}
        if weights.quantized and not source.quantized and ops.dtype == "int8":
            known["dtype"] = "float32"
        if source.input_range is not None:
            known["input_range"] = source.input_range
        # Heads filled up with zeros move the groups of four of what reads them.
        moved = name.endswith(".attention_output") and config.head_dim % 4 != 0
        if name.startswith("layer.") and (pattern == "block" or (pattern == "2:4" and not moved)):
            known["sparsity"] = pattern
        return ops.prepare_linear(source.weight, source.bias, name=name, **known)

    def norm(source: Any) -> Any:
        return ops.prepare_layer_norm(source.weight, source.bias, eps=eps)

    def table(weight: Any) -> Any:
        return None if weight is None else ops.prepare_embedding(weight)

    def read(i: int) -> LayerWeights:
        source, background = weights.layer(i), weights.background
        # An Ops that lays out weights in the same background sees the values in time.
        follows = getattr(ops, "background", None) is background
        if background is not None and not (follows and head_dim == config.head_dim):
            background.wait()
        return widen_heads(source, head_dim)

    def layer(i: int) -> LayerParameters:
        source = read(i)
        return LayerParameters(
            num_heads=source.num_heads,
            intermediate_size=source.intermediate.weight.shape[0],
            qkv=linear(f"layer.{i}.qkv", source.qkv),
            attention_output=linear(f"layer.{i}.attention_output", source.attention_output),
            attention_norm=norm(source.attention_norm),
            intermediate=linear(f"layer.{i}.intermediate", source.intermediate),
            output=linear(f"layer.{i}.output", source.output),
            output_norm=norm(source.output_norm),
        )

    return EncoderParameters(
        head_dim=head_dim,
        tables=(table(weights.word), table(weights.position), table(weights.token_type)),
        embedding_norm=norm(weights.embedding_norm),
        projection=linear("projection", weights.projection) if weights.projection else None,
        layers=tuple(layer(i) for i in range(len(weights.layers))),
    )


def widen_heads(layer: LayerWeights, head_dim: int) -> LayerWeights:
    """Fill every head with zeros up to `head_dim`.

    Exact: zeros of queries and keys add nothing to a score, and the zeros that the values become
    are multiplied by zeros of the output projection.
    """
    heads, narrow = layer.num_heads, layer.qkv.weight.shape[0] // (3 * layer.num_heads)
    extra = head_dim - narrow
    if extra == 0:
        return layer
    weight, bias = layer.qkv.weight, layer.qkv.bias
    wide = np.pad(weight.reshape(3, heads, narrow, -1), ((0, 0), (0, 0), (0, extra), (0, 0)))
    if bias is not None:
        bias = np.pad(bias.reshape(3, heads, narrow), ((0, 0), (0, 0), (0, extra))).reshape(-1)
    out = layer.attention_output
    columns = np.pad(out.weight.reshape(-1, heads, narrow), ((0, 0), (0, 0), (0, extra)))
    return replace(
        layer,
        qkv=replace(layer.qkv, weight=wide.reshape(3 * heads * head_dim, -1), bias=bias),
        attention_output=replace(out, weight=columns.reshape(-1, heads * head_dim)),
    )


def embed(ops: Ops, batch: Any, parameters: EncoderParameters) -> Array:
    """Token, position and type embeddings, summed and normalised, projected if narrower."""
    hidden_states = ops.embed(
        batch, parameters.tables, parameters.embedding_norm
    )  # (num_tokens, embedding_size)
    if parameters.projection is not None:
        hidden_states = ops.linear(
            hidden_states, parameters.projection
        )  # (num_tokens, hidden_size)
    return hidden_states


def attention(
    ops: Ops,
    hidden_states: Array,
    batch: Any,
    layer: LayerParameters,
    head_dim: int,
    softmax_scale: float,
) -> Array:
    """Self-attention within each text, output projection, residual, layer_norm."""
    qkv = ops.linear(hidden_states, layer.qkv)  # (num_tokens, 3 * num_heads * head_dim)
    context = ops.attention(
        qkv,
        batch,
        num_heads=layer.num_heads,
        head_dim=head_dim,
        softmax_scale=softmax_scale,
    )  # (num_tokens, num_heads * head_dim)
    summed = ops.linear(
        context, layer.attention_output, residual=hidden_states
    )  # (num_tokens, hidden_size)
    return ops.layer_norm(summed, layer.attention_norm)


def feed_forward(
    ops: Ops, hidden_states: Array, layer: LayerParameters, config: EncoderConfig
) -> Array:
    """Two linear layers around the activation, residual, layer_norm."""
    wide = ops.linear(
        hidden_states, layer.intermediate, activation=config.hidden_act
    )  # (num_tokens, intermediate_size)
    summed = ops.linear(wide, layer.output, residual=hidden_states)  # (num_tokens, hidden_size)
    return ops.layer_norm(summed, layer.output_norm)


def encoder_layer(
    ops: Ops,
    hidden_states: Array,
    batch: Any,
    layer: LayerParameters,
    head_dim: int,
    config: EncoderConfig,
) -> Array:
    """One transformer layer, post-norm."""
    softmax_scale = config.head_dim**-0.5  # of the checkpoint's heads, without the zeros
    hidden_states = attention(ops, hidden_states, batch, layer, head_dim, softmax_scale)
    return feed_forward(ops, hidden_states, layer, config)


def encode(ops: Ops, batch: Any, parameters: EncoderParameters, config: EncoderConfig) -> Array:
    """The whole encoder.

    Args:
        ops: a stream (`Ops.stream`).
        batch: from `ops.upload`.
        parameters: from `prepare` with the same Ops.
        config: the checkpoint's.

    Returns:
        last_hidden_state (num_tokens, hidden_size), packed like the batch.
    """
    hidden_states = embed(ops, batch, parameters)  # (num_tokens, hidden_size)
    for layer in parameters.layers:
        hidden_states = encoder_layer(ops, hidden_states, batch, layer, parameters.head_dim, config)
    return hidden_states


def forward_shape(
    config: EncoderConfig,
    parameters: EncoderParameters,
    *,
    num_tokens: int,
    max_seqlen: int,
    num_seqs: int,
) -> ForwardShape:
    """What decides the memory of a pass over such a batch, from the layers' own shapes."""
    heads = max(layer.num_heads for layer in parameters.layers)
    return ForwardShape(
        num_tokens=num_tokens,
        max_seqlen=max_seqlen,
        num_seqs=num_seqs,
        hidden_size=max(config.hidden_size, config.embedding_size),
        qkv_size=3 * heads * parameters.head_dim,
        intermediate_size=max(layer.intermediate_size for layer in parameters.layers),
        num_heads=heads,
        head_dim=parameters.head_dim,
    )
