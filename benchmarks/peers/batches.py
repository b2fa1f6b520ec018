"""What the runtimes that take tokens and give hidden states have in common.

Texts are tokenized together, sorted by length so that padding is small, cut into batches and spread
over the runtime's streams as each becomes free; hidden states are averaged over real tokens and
normalised, as all-MiniLM-L6-v2 asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Padded:
    """A batch; every array is (num_texts, longest) int64.

    Attributes:
        rows: where the batch's texts are in the call, (num_texts,).
    """

    rows: Any
    input_ids: Any
    attention_mask: Any

    def inputs(self, names: set[str]) -> dict[str, Any]:
        """The arrays that a graph has inputs for."""
        arrays = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": np.zeros_like(self.input_ids),
        }
        return {name: arrays[name] for name in arrays if name in names}


class Batcher:
    """From texts to batches."""

    def __init__(self, model: str, *, batch_size: int = BATCH_SIZE) -> None:
        """Read the tokenizer and the longest length from a model folder."""
        folder = Path(model)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(longest_text(folder))
        self.batch_size = batch_size

    def batches(self, texts: list[str]) -> Iterator[Padded]:
        """Batches of texts of similar lengths, the longest first."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        for begin in range(0, len(order), self.batch_size):
            rows = order[begin : begin + self.batch_size]
            longest = len(ids[rows[0]])
            input_ids = np.zeros((len(rows), longest), np.int64)
            mask = np.zeros_like(input_ids)
            for k, i in enumerate(rows):
                input_ids[k, : len(ids[i])] = ids[i]
                mask[k, : len(ids[i])] = 1
            yield Padded(np.asarray(rows), input_ids, mask)


class StreamEncoder:
    """Encodes through a function that computes one batch; several run at once."""

    def __init__(self, batcher: Batcher, run: Callable[[Padded], Any], *, streams: int) -> None:
        """Keep the parts; `run` gives (num_texts, longest, hidden_size) for a batch."""
        self._batcher = batcher
        self._run = run
        self._pool = ThreadPoolExecutor(streams) if streams > 1 else None

    def encode(self, texts: list[str]) -> Any:
        """(num_texts, hidden_size) float32, normalised."""
        batches = list(self._batcher.batches(texts))
        if self._pool is None or len(batches) == 1:
            done = map(self._pooled, batches)
        else:
            done = self._pool.map(self._pooled, batches)
        vectors = None
        for batch, rows in zip(batches, done, strict=True):
            if vectors is None:
                vectors = np.empty((len(texts), rows.shape[1]), np.float32)
            vectors[batch.rows] = rows
        return vectors

    def _pooled(self, batch: Padded) -> Any:
        return mean_pool(self._run(batch), batch.attention_mask)


def mean_pool(hidden: Any, mask: Any) -> Any:
    """Mean over real tokens, normalised.

    Args:
        hidden: (num_texts, longest, hidden_size) float32.
        mask: (num_texts, longest), 1 for real tokens.
    """
    sums = np.matmul(mask[:, None, :].astype(np.float32), hidden)[:, 0]
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def longest_text(folder: Path) -> int:
    """Most tokens of a text, as sentence-transformers reads it."""
    config = folder / "sentence_bert_config.json"
    if config.is_file():
        limit = json.loads(config.read_text(encoding="utf-8")).get("max_seq_length")
        if limit:
            return int(limit)
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(sizes["max_position_embeddings"])


def versions(*distributions: str) -> dict[str, Any]:
    """Installed versions, for `about`."""
    return {"versions": {name: version(name) for name in distributions}}
