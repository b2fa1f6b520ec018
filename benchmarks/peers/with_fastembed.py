"""fastembed with a local model; it takes texts in the order given, without sorting."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from batches import BATCH_SIZE, versions
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

NAME = "local/model"


class Peer:
    """A TextEmbedding on a folder made of the model's tokenizer and its exported graph."""

    def __init__(self, model: str, graph: str, threads: int) -> None:
        """Lay out the folder that fastembed expects and load it."""
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        for file in Path(model).glob("*.json"):
            shutil.copy(file, folder)
        (folder / "model.onnx").symlink_to(Path(graph).resolve())
        hidden_size = json.loads((folder / "config.json").read_text())["hidden_size"]
        TextEmbedding.add_custom_model(
            model=NAME,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf=NAME),
            dim=hidden_size,
            model_file="model.onnx",
        )
        self._model = TextEmbedding(NAME, threads=threads, specific_model_path=str(folder))

    def encode(self, texts: list[str]) -> Any:
        """Normalised vectors."""
        return np.stack(list(self._model.embed(texts, batch_size=BATCH_SIZE)))

    def about(self) -> dict[str, Any]:
        """Versions."""
        return versions("fastembed", "onnxruntime")


def load(*, model: str, graph: str, threads: int) -> Peer:
    """Load the contender."""
    return Peer(model, graph, threads)
