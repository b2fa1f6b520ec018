"""Takes the hidden states of all texts through an encoder, one layer at a time.

What `TextRun` would compute anew for each layer, from the embeddings on, stays here in the host's
memory between two layers: a model of L layers is walked in L steps and not in L * (L + 1) / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from minibert import model
from minibert.batch import Batch, pack
from minibert.compress.run import TextRun, narrow, narrowed
from minibert.ops.interface import Ops
from minibert.ops.recording import Observer, RecordingOps
from minibert.ops.select import DeviceOptions, make_ops
from minibert.plan import plan_batches
from minibert.pooling import apply_steps, prepare_steps
from minibert.runner import token_types
from minibert.weights.checkpoint import EncoderWeights, LayerWeights
from minibert.weights.layer_fit import Block

FloatArray = NDArray[np.float32]
States = list[FloatArray]
"""Hidden states of each batch, (num_tokens, hidden_size)."""

_FEWEST_BATCHES = 20  # so that every fifth can check what the others fit
_TOKENS = (64, 2048)  # least and most of a batch


class LayerWalk:
    """The batches of one run, and the device that takes them through a layer."""

    def __init__(self, run: TextRun) -> None:
        """Plan the batches: whole texts, of like length, in the same order for every model."""
        self.config = replace(run.loaded.config, layer_shapes=(), pruned_heads={})
        self.ops, _ = make_ops(run.device, DeviceOptions(dtype="float32"))
        ids = run.tokenized.input_ids
        least, most = _TOKENS
        budget = max(least, min(most, run.num_tokens // _FEWEST_BATCHES))
        plan = plan_batches([x.size for x in ids], max_batch_tokens=budget)
        self.batches = [
            pack(
                [ids[i] for i in chosen],
                token_type_ids=token_types(
                    self.config, [run.tokenized.token_type_ids[i] for i in chosen]
                ),
                first_position=self.config.first_position,
                pad_token_id=self.config.pad_token_id if self.config.first_position else None,
            )
            for chosen in plan
        ]
        self._order = np.concatenate(plan)
        self._steps = prepare_steps(self.ops, run.loaded.steps)

    def start(self, weights: EncoderWeights) -> States:
        """Hidden states before the first layer."""
        parameters = model.prepare(self.ops, replace(weights, layers=()), self.config)
        states = []
        with self.ops.stream(alone=True) as ops:
            for batch in self.batches:
                states.append(ops.download(model.embed(ops, ops.upload(batch), parameters)))
        return states

    def through(
        self,
        states: States,
        layer: LayerWeights,
        observer: Observer | None = None,
        names: Callable[[str], bool] | None = None,
    ) -> States:
        """Hidden states after a layer.

        Args:
            states: before it.
            layer: of any shape.
            observer: sees the layer's linear parts batch by batch, under the names
                `layer.0.qkv`, `layer.0.attention_output`, `layer.0.intermediate`, `layer.0.output`.
            names: which of them; all when None.
        """
        ops: Ops = self.ops
        if observer is not None:
            ops = RecordingOps(ops, narrowed(self.config, ops, observer), names=names)
        parameters = model.prepare(ops, _only(layer), self.config)
        after = []
        with ops.stream(alone=True) as running:
            for batch, hidden in zip(self.batches, states, strict=True):
                # The states come to the device as rows of a table, looked up in their order.
                table = running.prepare_embedding(hidden)
                uploaded = running.upload(_rows(batch))
                given = running.embed(uploaded, (table, None, None), None)
                out = model.encoder_layer(
                    running,
                    given,
                    uploaded,
                    parameters.layers[0],
                    parameters.head_dim,
                    self.config,
                )
                after.append(running.download(out))
        return after

    def contexts(self, states: States, layer: LayerWeights) -> States:
        """What attention gives each batch before its output matrix, (num_tokens, heads * head_dim).

        Args:
            states: before the layer.
            layer: of any shape.
        """
        parameters = model.prepare(self.ops, _only(layer), self.config)
        found: States = []
        with self.ops.stream(alone=True) as ops:
            for batch, hidden in zip(self.batches, states, strict=True):
                uploaded = ops.upload(_rows(batch))
                table = ops.prepare_embedding(hidden)
                given = ops.embed(uploaded, (table, None, None), None)
                context = ops.attention(
                    ops.linear(given, parameters.layers[0].qkv),
                    uploaded,
                    num_heads=layer.num_heads,
                    head_dim=parameters.head_dim,
                    softmax_scale=self.config.head_dim**-0.5,
                )
                found.append(narrow(ops.download(context), parameters.head_dim, self.config))
        return found

    def embeddings(self, states: States) -> FloatArray:
        """What the model makes of the last hidden states, (num_texts, dimension)."""
        rows = []
        with self.ops.stream(alone=True) as ops:
            for batch, hidden in zip(self.batches, states, strict=True):
                uploaded = ops.upload(_rows(batch))
                table = ops.prepare_embedding(hidden)
                given = ops.embed(uploaded, (table, None, None), None)
                rows.append(ops.download(apply_steps(ops, given, uploaded, self._steps)))
        found: FloatArray = np.concatenate(rows)[np.argsort(self._order)]
        return found

    def blocks(self, hidden: States, target: States) -> list[Block]:
        """Inputs and wanted outputs of a linear layer, batch by batch."""
        return [
            Block(x, y, batch.cu_seqlens)
            for x, y, batch in zip(hidden, target, self.batches, strict=True)
        ]

    def close(self) -> None:
        """Give back the device."""
        self.ops.close()


def _rows(batch: Batch) -> Batch:
    return replace(batch, input_ids=np.arange(batch.num_tokens, dtype=np.int32))


def _only(layer: LayerWeights) -> EncoderWeights:
    """A layer as an encoder without embeddings."""
    nothing = np.zeros((1, layer.qkv.weight.shape[1]), np.float32)
    return EncoderWeights(
        word=nothing,
        position=nothing,
        token_type=None,
        embedding_norm=layer.output_norm,
        projection=None,
        layers=(layer,),
        unused=(),
        dtypes=(),
        files=(),
    )


def sums_before_norms(
    walk: LayerWalk, states: States, layers: Sequence[LayerWeights]
) -> tuple[States, States, States]:
    """Take states through layers, and keep what the last one has before its layer_norms.

    Returns:
        The states after the last layer; its sums after attention; its sums after feed-forward.
    """
    for layer in layers[:-1]:
        states = walk.through(states, layer)
    seen: dict[str, States] = {"layer.0.attention_output": [], "layer.0.output": []}
    after = walk.through(
        states, layers[-1], lambda event: seen[event.name].append(event.out), seen.__contains__
    )
    return after, seen["layer.0.attention_output"], seen["layer.0.output"]
