"""CTranslate2: one single-threaded stream per core, the faster arrangement on one text too."""

from __future__ import annotations

from typing import Any

import ctranslate2
import numpy as np
from batches import Batcher, Padded, StreamEncoder, versions


class Peer(StreamEncoder):
    """An encoder with as many replicas as threads; they share the weights."""

    def __init__(self, model: str, graph: str, threads: int, compute_type: str) -> None:
        """Load the converted folder."""
        self._encoder = ctranslate2.Encoder(
            graph, device="cpu", inter_threads=threads, intra_threads=1, compute_type=compute_type
        )
        super().__init__(Batcher(model), self._infer, streams=threads)

    def _infer(self, batch: Padded) -> Any:
        seqlens = batch.attention_mask.sum(axis=1)
        ids = [row[:n].tolist() for row, n in zip(batch.input_ids, seqlens, strict=True)]
        return np.asarray(self._encoder.forward_batch(ids).last_hidden_state)

    def about(self) -> dict[str, Any]:
        """Versions, and the type that it computes in."""
        return {**versions("ctranslate2"), "precision": self._encoder.compute_type}


def load(*, model: str, graph: str, threads: int, compute_type: str) -> Peer:
    """Load the contender."""
    return Peer(model, graph, threads, compute_type)
