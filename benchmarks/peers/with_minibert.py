"""minibert, on its kernels or on NumPy."""

from __future__ import annotations

from typing import Any

import minibert
from minibert import Engine


class Peer:
    """An Engine."""

    def __init__(
        self, model: str, threads: int, device: str, dtype: str, matmul_precision: str
    ) -> None:
        """Load the model."""
        self._engine = Engine.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            matmul_precision=matmul_precision,
            threads=threads,
            truncation="silent",
        )

    def encode(self, texts: list[str]) -> Any:
        """Normalised vectors."""
        return self._engine.encode(texts, normalize_embeddings=True)

    def about(self) -> dict[str, Any]:
        """Versions, and every decision that the engine took."""
        return {
            "versions": {"minibert-engine": minibert.__version__},
            "explain": self._engine.explain(),
        }


def load(
    *, model: str, threads: int, device: str, dtype: str, matmul_precision: str = "highest"
) -> Peer:
    """Load the contender.

    Raises:
        RuntimeError: the kernels were asked for but not built; "cpu" would fall back to NumPy.
    """
    if device == "cpu":
        from minibert.ops import cpu

        built, why = cpu.available()
        if not built:
            raise RuntimeError(why)
    return Peer(model, threads, device, dtype, matmul_precision)
