"""OpenVINO: one single-threaded stream per core for batches, all cores for one text."""

from __future__ import annotations

import threading
from typing import Any

import openvino
from batches import Batcher, Padded, StreamEncoder, versions


class Peer(StreamEncoder):
    """A model compiled for throughput, and for latency when the first single text comes."""

    def __init__(self, model: str, graph: str, threads: int, precision: str) -> None:
        """Compile for throughput."""
        self._core = openvino.Core()
        self._graph = graph
        self._threads = threads
        self._precision = precision
        self._batches = self._compile(threads)
        self._names = {item.get_any_name() for item in self._batches.inputs}
        self._local = threading.local()
        self._single: Any = None
        super().__init__(Batcher(model), self._infer, streams=threads)

    def _compile(self, streams: int) -> Any:
        hints = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": self._precision,
        }
        return self._core.compile_model(self._graph, "CPU", hints)

    def _infer(self, batch: Padded) -> Any:
        inputs = batch.inputs(self._names)
        if len(batch.rows) == 1:
            if self._single is None:
                self._single = self._compile(1).create_infer_request()
            request = self._single
        else:
            if not hasattr(self._local, "request"):
                self._local.request = self._batches.create_infer_request()
            request = self._local.request
        return request.infer(inputs, share_inputs=True, share_outputs=True)[0]

    def about(self) -> dict[str, Any]:
        """Versions, and the precision that the plugin says it computes in."""
        used = str(self._batches.get_property("INFERENCE_PRECISION_HINT"))
        return {**versions("openvino"), "precision": used}


def load(*, model: str, graph: str, threads: int, precision: str) -> Peer:
    """Load the contender."""
    return Peer(model, graph, threads, precision)
