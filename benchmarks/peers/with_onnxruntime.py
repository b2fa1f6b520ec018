"""ONNX Runtime: the exported and fused graph, float32 or dynamically quantised int8."""

from __future__ import annotations

from typing import Any

import onnxruntime
from batches import Batcher, StreamEncoder, versions


class Peer(StreamEncoder):
    """One session whose operators use all threads."""

    def __init__(self, model: str, graph: str, threads: int) -> None:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        names = {item.name for item in session.get_inputs()}
        super().__init__(
            Batcher(model), lambda batch: session.run(None, batch.inputs(names))[0], streams=1
        )

    def about(self) -> dict[str, Any]:
        """Versions."""
        return versions("onnxruntime")


def load(*, model: str, graph: str, threads: int) -> Peer:
    """Load the contender."""
    return Peer(model, graph, threads)
