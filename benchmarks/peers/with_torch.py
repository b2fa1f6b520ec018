"""sentence-transformers on torch."""

from __future__ import annotations

from typing import Any

import torch
from batches import BATCH_SIZE, versions
from sentence_transformers import SentenceTransformer


class Peer:
    """A SentenceTransformer on the CPU."""

    def __init__(self, model: str, threads: int, dtype: str) -> None:
        """Load it in a number format."""
        torch.set_num_threads(threads)
        kwargs = {} if dtype == "float32" else {"torch_dtype": getattr(torch, dtype)}
        self._model = SentenceTransformer(model, device="cpu", model_kwargs=kwargs)

    def encode(self, texts: list[str]) -> Any:
        """Normalised vectors; sentence-transformers sorts by length itself."""
        return self._model.encode(
            texts, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False
        )

    def about(self) -> dict[str, Any]:
        """Versions; torch's own says whether it is a CPU build."""
        return versions("torch", "sentence-transformers", "transformers")


def load(*, model: str, threads: int, dtype: str) -> Peer:
    """Load the contender."""
    return Peer(model, threads, dtype)
