"""Parameters of an encoder: float32 arrays, or shapes and a source that reads layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minibert.weights.tensors import release

if TYPE_CHECKING:
    from minibert.kernels.cpu.background import Background

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """weight (out_features, in_features) and bias (out_features,) or None; float32.

    `quantized`: the weight is an exact product of int8 values and a scale per output feature, and
    the checkpoint does not ask for float activations. `input_range`: (low, high) that `minibert
    quantize --static` fixed for the layer's inputs, or None.
    """

    weight: Float32
    bias: Float32 | None
    quantized: bool = False
    input_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class NormWeights:
    """weight and bias of a layer_norm, (hidden_size,); float32."""

    weight: Float32
    bias: Float32 | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One encoder layer; `qkv` is (3 * num_heads * head_dim, hidden_size), fused at load."""

    num_heads: int
    qkv: LinearWeights
    attention_output: LinearWeights
    attention_norm: NormWeights
    intermediate: LinearWeights
    output: LinearWeights
    output_norm: NormWeights


class LayerSource:
    """Reads the layers of a checkpoint one by one, and lets go of the files' pages behind it."""

    def __init__(
        self,
        read: Callable[[int], LayerWeights],
        mapped: list[NDArray[Any]],
        background: Background | None = None,
    ) -> None:
        """Hold a reader that has already checked all names, shapes and dtypes.

        Args:
            read: a layer's values.
            mapped: where `read` notes the tensors whose pages it touched.
            background: checks and joins what `read` gives.
        """
        self._read = read
        self._mapped = mapped
        self.background = background

    def layer(self, i: int) -> LayerWeights:
        """See `EncoderWeights.layer`."""
        self.let_go()
        return self._read(i)

    def let_go(self) -> None:
        """Release what the last layer read."""
        for array in self._mapped:
            release(array, self.background)
        self._mapped.clear()


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """All parameters of an encoder.

    Attributes:
        word: (vocab_size, embedding_size); `position` and `token_type` likewise, or None.
        embedding_norm: after the sum of the embeddings.
        projection: embedding_size -> hidden_size, or None.
        layers: one entry per layer.
        unused: names in the files that the encoder does not read, on purpose.
        dtypes: dtype names found on disk.
        files: what was read.
        source: reads the values of a layer where `layers` has only their shapes; None where
            `layers` has the values.
    """

    word: Float32
    position: Float32
    token_type: Float32 | None
    embedding_norm: NormWeights
    projection: LinearWeights | None
    layers: tuple[LayerWeights, ...]
    unused: tuple[str, ...]
    dtypes: tuple[str, ...]
    files: tuple[Path, ...]
    source: LayerSource | None = None

    def layer(self, i: int) -> LayerWeights:
        """A layer with its values; its pages of the files go when the next layer is read.

        With a `background`, values are there for what it is told later, and for others after its
        `wait`, which tells whether they are finite.

        Raises:
            WeightsError: without a background, values that are not finite.
        """
        return self.layers[i] if self.source is None else self.source.layer(i)

    @property
    def background(self) -> Background | None:
        """What checks and joins the values of layers, None where that is done at once."""
        return None if self.source is None else self.source.background

    def let_go(self) -> None:
        """Release what `layer` read last, when devices have laid all layers out."""
        if self.source is not None:
            self.source.let_go()

    @property
    def num_parameters(self) -> int:
        """How many numbers the encoder has."""
        return sum(array.size for array in _arrays(self))

    def shapes_only(self) -> EncoderWeights:
        """The same shapes without the values, for after a device has laid the weights out.

        Pages of mapped files are let go, too; values that a device did not copy stay with it.
        """
        self.let_go()
        for array in _arrays(self):
            release(array)
        shapes: EncoderWeights = _without_values(replace(self, source=None))
        return shapes

    @property
    def quantized(self) -> bool:
        """Whether some layer came from int8, so that int8 is how this checkpoint wants to run."""
        return any(
            linear.quantized
            for layer in self.layers
            for linear in (layer.qkv, layer.attention_output, layer.intermediate, layer.output)
        )


def _arrays(value: Any) -> list[Float32]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, LayerWeights | LinearWeights | NormWeights | EncoderWeights):
        fields = [getattr(value, name) for name in value.__slots__]
        return [array for item in fields for array in _arrays(item)]
    if isinstance(value, tuple):
        return [array for item in value for array in _arrays(item)]
    return []


def _without_values(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.broadcast_to(np.zeros((), value.dtype), value.shape)
    if isinstance(value, LayerWeights | LinearWeights | NormWeights | EncoderWeights):
        return replace(value, **{n: _without_values(getattr(value, n)) for n in value.__slots__})
    if isinstance(value, tuple):
        return tuple(_without_values(item) for item in value)
    return value
