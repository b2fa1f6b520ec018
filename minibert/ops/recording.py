"""An Ops that wraps another one and shows the linear layers' inputs and outputs to an observer.

The forward pass has no hooks: what calibration and pruning need to see passes through `linear`,
and a layer is known by the name that `prepare_linear` was given (`layer.3.output`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.ops.interface import Activation, Array, ForwardShape, Ops, PoolMode
from minibert.weights.statistics import LinearStatistics

Observer = Callable[["LinearEvent"], None]


@dataclass(frozen=True, slots=True)
class LinearEvent:
    """One call of `linear`.

    Attributes:
        name: of the layer.
        hidden: (num_rows, in_features), its input.
        residual: (num_rows, out_features) that was added, or None.
        out: (num_rows, out_features), its result, activation and residual included.
        cu_seqlens: (num_seqs + 1,) bounds of the batch's texts.
    """

    name: str
    hidden: NDArray[Any]
    residual: NDArray[Any] | None
    out: NDArray[Any]
    cu_seqlens: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class NamedLinear:
    """A linear layer as an Ops laid it out, and the name it was given."""

    name: str
    inner: Any


class RecordingOps:
    """`Ops` that computes what `inner` computes, and reports every linear layer it was asked to.

    It runs one stream at a time, so an observer sees batches in their order and needs no lock of
    its own.
    """

    def __init__(
        self, inner: Ops, observer: Observer, *, names: Callable[[str], bool] | None = None
    ) -> None:
        """Wrap an Ops.

        Args:
            inner: does the work.
            observer: receives each linear layer's event; its arrays are copies on the host.
            names: which layers are reported; all when None.
        """
        self.inner = inner
        self.observer = observer
        self.wanted = names
        self.name = inner.name
        self.dtype = inner.dtype
        self.num_streams = 1
        self.num_idle_streams = 0
        self.preferred_batch_tokens = inner.preferred_batch_tokens
        self.head_dim_multiple = inner.head_dim_multiple
        self._one_at_a_time = threading.Lock()
        self._cu_seqlens = np.zeros(1, np.int32)

    @contextmanager
    def stream(self, *, alone: bool) -> Iterator[RecordingOps]:
        """See `Ops.stream`; all cores, as there is never a second stream."""
        with self._one_at_a_time, self.inner.stream(alone=True) as running:
            yield RecordingOps(running, self.observer, names=self.wanted)

    def expect_batch(self) -> None:
        """See `Ops.expect_batch`."""
        self.inner.expect_batch()

    def scratch_bytes(self, shape: ForwardShape) -> int:
        """See `Ops.scratch_bytes`: the inner one's, and the copies of one layer."""
        widest = max(shape.intermediate_size, shape.qkv_size, shape.hidden_size)
        return self.inner.scratch_bytes(shape) + 8 * 3 * shape.num_tokens * widest

    def close(self) -> None:
        """See `Ops.close`."""
        self.inner.close()

    def prepare_linear(
        self,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        *,
        name: str,
        dtype: str | None = None,
        sparsity: str | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> NamedLinear:
        """See `Ops.prepare_linear`; keeps the name."""
        inner = self.inner.prepare_linear(
            weight, bias, name=name, dtype=dtype, sparsity=sparsity, input_range=input_range
        )
        return NamedLinear(name, inner)

    def prepare_layer_norm(
        self, weight: NDArray[Any], bias: NDArray[Any] | None, *, eps: float
    ) -> Any:
        """See `Ops.prepare_layer_norm`."""
        return self.inner.prepare_layer_norm(weight, bias, eps=eps)

    def prepare_embedding(self, weight: NDArray[Any]) -> Any:
        """See `Ops.prepare_embedding`."""
        return self.inner.prepare_embedding(weight)

    def upload(self, batch: Batch) -> Any:
        """See `Ops.upload`; keeps the bounds of the texts."""
        self._cu_seqlens = batch.cu_seqlens
        return self.inner.upload(batch)

    def download(self, array: Array) -> NDArray[np.float32]:
        """See `Ops.download`."""
        return self.inner.download(array)

    def forward(
        self,
        batch: Batch,
        function: Callable[[RecordingOps, Any], tuple[Any, ...]],
        *,
        key: Hashable,
    ) -> tuple[NDArray[np.float32], ...]:
        """See `Ops.forward`; never by a recorded graph, whose layers nobody sees."""
        uploaded = self.upload(batch)
        return tuple(self.download(array) for array in function(self, uploaded))

    def embed(self, batch: Any, tables: Sequence[Any], norm: Any | None) -> Array:
        """See `Ops.embed`."""
        return self.inner.embed(batch, tables, norm)

    def linear(
        self,
        hidden: Array,
        weights: NamedLinear,
        *,
        activation: Activation | None = None,
        residual: Array | None = None,
    ) -> Array:
        """See `Ops.linear`; then tells the observer."""
        out = self.inner.linear(hidden, weights.inner, activation=activation, residual=residual)
        if self.wanted is None or self.wanted(weights.name):
            added = None if residual is None else self.inner.download(residual)
            seen = self.inner.download(hidden), added, self.inner.download(out)
            self.observer(LinearEvent(weights.name, *seen, self._cu_seqlens))
        return out

    def layer_norm(self, hidden: Array, norm: Any) -> Array:
        """See `Ops.layer_norm`."""
        return self.inner.layer_norm(hidden, norm)

    def attention(
        self, qkv: Array, batch: Any, *, num_heads: int, head_dim: int, softmax_scale: float
    ) -> Array:
        """See `Ops.attention`."""
        return self.inner.attention(
            qkv, batch, num_heads=num_heads, head_dim=head_dim, softmax_scale=softmax_scale
        )

    def pool(self, hidden: Array, batch: Any, mode: PoolMode) -> Array:
        """See `Ops.pool`."""
        return self.inner.pool(hidden, batch, mode)

    def normalize(self, rows: Array) -> Array:
        """See `Ops.normalize`."""
        return self.inner.normalize(rows)

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """See `Ops.concatenate`."""
        return self.inner.concatenate(arrays)


class StatisticsObserver:
    """An observer that keeps `LinearStatistics` of every layer it is shown."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._found: dict[str, LinearStatistics] = {}

    def __call__(self, event: LinearEvent) -> None:
        """Take in one call's input."""
        if event.name not in self._found:
            self._found[event.name] = LinearStatistics.empty(event.hidden.shape[1])
        self._found[event.name].add(event.hidden)

    @property
    def statistics(self) -> Mapping[str, LinearStatistics]:
        """Layer name -> statistics of its inputs."""
        return self._found
