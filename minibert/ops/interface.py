"""The interface between the forward pass and the machine.

`model.py` is written once against `Ops`. An implementation decides where arrays live, how weights
are laid out and which kernel runs; it never decides what is computed. Arrays and prepared weights
are opaque to the caller (`Any`): they are only handed back to the same `Ops`.

Shapes below are those of the mathematics; `hidden_states` is `(num_tokens, hidden_size)`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.errors import DeviceOptionError, InputError

Array = Any
"""An array of the device: NumPy, CuPy, or an object private to one Ops."""

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]
"""`gelu` is x * Phi(x) with the exact erf; `gelu_tanh` its tanh approximation."""

TABLE_NAMES = ("input_ids", "position_ids", "token_type_ids")
"""What the tables of `Ops.embed` are looked up by, in their order."""

MATMUL_PRECISIONS = ("highest", "high", "medium")
"""How exactly float32 is multiplied."""

SPARSITIES = (None, "2:4", "block")
"""Where the zeros of a weight may be known to be: see `Ops.prepare_linear`."""

PoolMode = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


class ForwardShape(NamedTuple):
    """What decides the memory of one forward pass.

    Attributes:
        num_tokens: tokens of the batch.
        max_seqlen: tokens of its longest text.
        num_seqs: texts of the batch.
        hidden_size: width of the hidden states.
        qkv_size: widest fused query, key and value output over the layers.
        intermediate_size: widest feed-forward layer.
        num_heads: most heads of a layer.
        head_dim: width of a head.
    """

    num_tokens: int
    max_seqlen: int
    num_seqs: int
    hidden_size: int
    qkv_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int


def outside_error(batch: Batch, table: int, token: int, num_rows: int) -> InputError:
    """The error that names an id which its embedding table of `num_rows` rows does not have."""
    name = TABLE_NAMES[table]
    return InputError(
        f"{name} must be from 0 to {num_rows - 1}, "
        f"got {getattr(batch, name)[token]} at token {token}"
    )


def check_matmul_precision(matmul_precision: str) -> None:
    """Raise DeviceOptionError for what is none of `MATMUL_PRECISIONS`."""
    if matmul_precision not in MATMUL_PRECISIONS:
        raise DeviceOptionError(
            f"matmul_precision must be one of {', '.join(MATMUL_PRECISIONS)}, "
            f"got {matmul_precision!r}"
        )


def check_sparsity(sparsity: str | None, *, name: str) -> None:
    """Raise InputError for what is none of `SPARSITIES`."""
    if sparsity not in SPARSITIES:
        raise InputError(
            f"sparsity of {name} must be one of {', '.join(map(str, SPARSITIES))}, got {sparsity!r}"
        )


def check_ids(batch: Batch, table_rows: Sequence[int | None]) -> None:
    """Refuse the first id outside its table: below 0, or behind the last row.

    Args:
        batch: ids to be looked up.
        table_rows: of each table in the order of `TABLE_NAMES`; None where there is no table.

    Raises:
        InputError: naming the id, its token and the table's rows.
    """
    found: list[tuple[int, int, int]] = []  # token, table, rows
    for table, (name, rows) in enumerate(zip(TABLE_NAMES, table_rows, strict=True)):
        if rows is not None:
            ids = getattr(batch, name)
            outside = (ids < 0) | (ids >= rows)
            if outside.any():
                found.append((int(outside.argmax()), table, rows))
    if found:
        token, table, rows = min(found)
        raise outside_error(batch, table, token, rows)


class Ops(Protocol):
    """One device, one dtype.

    Weights are prepared once, at load, by `prepare_*`; the preparing call may keep or copy its
    argument, and never changes it. All other calls happen inside `stream()`.

    An implementation is thread-safe: several threads may each hold a stream. A stream belongs to
    one thread.
    """

    name: str
    """What `engine.explain()` prints: "reference", "cpu", "cuda", "emulator"."""
    dtype: str
    """"float32", "float64", "bfloat16", "float16" or "int8": how linear layers compute."""
    num_streams: int
    """Batches that may profitably run at once, each in a thread of its own."""
    num_idle_streams: int
    """Streams that keep scratch memory beside those, without running when all of them do."""
    preferred_batch_tokens: int
    """`max_batch_tokens` where the user names none."""
    head_dim_multiple: int
    """Heads are handed over with zeros up to a multiple of this width; 1 for any width."""

    def stream(self, *, alone: bool) -> AbstractContextManager[Ops]:
        """Enter the state of one running batch: scratch memory, a CUDA stream, a thread team.

        Args:
            alone: True when no other batch runs beside this one, so that one batch may use all
                cores (latency); False when each batch should stay on its own core (throughput).

        Returns:
            A context manager whose value is the Ops to call. Arrays made inside are valid until
            it ends; what must survive goes through `download`.
        """
        ...

    def expect_batch(self) -> None:
        """A batch is about to come, alone: threads that sleep may wake meanwhile. Only a hint."""
        ...

    def scratch_bytes(self, shape: ForwardShape) -> int:
        """Upper bound of what one stream allocates for a forward pass of this shape, in bytes."""
        ...

    def close(self) -> None:
        """Give back threads and device memory. Calls after this are an error."""
        ...

    # ---- weights, once at load -----------------------------------------------------------------
    def prepare_linear(
        self,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        *,
        name: str,
        dtype: str | None = None,
        sparsity: str | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> Any:
        """Lay out one linear layer.

        Args:
            weight: (out_features, in_features), as in the checkpoint; float32, float16 or, as raw
                uint16, bfloat16 already widened to float32 by the checkpoint reader.
            bias: (out_features,) or None.
            name: the parameter's name in the checkpoint, for messages and per-layer decisions.
            dtype: how this layer computes where that differs from the Ops' own: "float32" for a
                layer that a quantised checkpoint kept as float. Weights that come from int8 are
                exact products of an integer in -127..127 and a scale per output feature, with
                127 among each row's magnitudes, so int8 finds both again exactly.
            sparsity: where the weight's zeros are: "2:4", two of each four consecutive inputs of
                every row at least; "block", the same inputs for each 16 consecutive rows; None,
                nothing is known. A device may profit from it; the result is the product with the
                weight as it is given.
            input_range: (low, high), low <= 0 <= high, for which `hidden` is quantised to 8 bits;
                what lies beyond saturates. A device that computes this layer in int8 takes it in
                the place of each row's own range; the reference quantises and goes on in float;
                one that computes the layer in float leaves it aside.
        """
        ...

    def prepare_layer_norm(
        self, weight: NDArray[Any], bias: NDArray[Any] | None, *, eps: float
    ) -> Any:
        """Lay out one layer normalisation, weight and bias (hidden_size,)."""
        ...

    def prepare_embedding(self, weight: NDArray[Any]) -> Any:
        """Lay out one embedding table, (num_rows, hidden_size)."""
        ...

    # ---- transfer ------------------------------------------------------------------------------
    def upload(self, batch: Batch) -> Any:
        """Bring a batch to the device; the result is the `batch` argument of the calls below.

        A second upload in one stream ends the arrays that were made under the first.
        """
        ...

    def download(self, array: Array) -> NDArray[np.float32]:
        """Bring a result to the host as float32 (float64 where dtype is float64); a copy."""
        ...

    def forward(
        self, batch: Batch, function: Callable[[Any, Any], tuple[Array, ...]], *, key: Hashable
    ) -> tuple[NDArray[np.float32], ...]:
        """Upload a batch, compute, download the results.

        A device may record what `function` does and replay it for later batches.

        Args:
            batch: to compute.
            function: from (ops, uploaded batch) to arrays; the same operations on the same weights
                whenever it is called with the same key.
            key: what `function` computes.

        Returns:
            The downloaded arrays.
        """
        ...

    # ---- forward -------------------------------------------------------------------------------
    def embed(self, batch: Any, tables: Sequence[Any], norm: Any | None) -> Array:
        """Sum of the embedding tables' rows, then layer_norm.

        Args:
            batch: from `upload`.
            tables: word, position, token type, in this order; each may be None except the first.
                They are looked up by input_ids, position_ids, token_type_ids.
            norm: from `prepare_layer_norm`, or None.

        Returns:
            hidden_states (num_tokens, embedding_size).
        """
        ...

    def linear(
        self,
        hidden: Array,
        weights: Any,
        *,
        activation: Activation | None = None,
        residual: Array | None = None,
    ) -> Array:
        """activation(hidden @ weight.T + bias) + residual.

        Args:
            hidden: (num_rows, in_features).
            weights: from `prepare_linear`.
            activation: applied before the residual is added.
            residual: (num_rows, out_features).

        Returns:
            (num_rows, out_features).
        """
        ...

    def layer_norm(self, hidden: Array, norm: Any) -> Array:
        """Each row to mean 0 and variance 1 (biased, plus eps), times weight, plus bias."""
        ...

    def attention(
        self, qkv: Array, batch: Any, *, num_heads: int, head_dim: int, softmax_scale: float
    ) -> Array:
        """softmax(softmax_scale * Q K^T) V within each sequence, per head.

        Args:
            qkv: (num_tokens, 3 * num_heads * head_dim); queries, keys, values side by side, each
                (num_heads, head_dim).
            batch: from `upload`; a token attends to the tokens of its own sequence only.
            num_heads: heads of this layer (pruned layers have fewer).
            head_dim: width of one head.
            softmax_scale: usually head_dim ** -0.5.

        Returns:
            context (num_tokens, num_heads * head_dim).
        """
        ...

    def pool(self, hidden: Array, batch: Any, mode: PoolMode) -> Array:
        """One vector per sequence, (num_seqs, hidden_size).

        The first `batch.skip` tokens of a sequence are left out: `cls` takes the first token that
        is kept, `weightedmean` weighs a token by its position (from 1) in the whole sequence.
        `batch.skip` is always less than the sequence's length.
        """
        ...

    def normalize(self, rows: Array) -> Array:
        """Each row divided by max(its L2 norm, 1e-12)."""
        ...

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Side by side along the last axis."""
        ...
