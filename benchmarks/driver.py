"""Starts worker processes and talks to them: one line of JSON each way."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.environments import CHECKOUT, PEERS, tidy
from benchmarks.rounds import Meter, Sample

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerProblem(Exception):
    """A contender could not be loaded or failed; the message is the reason."""


class Worker:
    """One contender in a process of its own. Use as a context, or call `close`."""

    def __init__(
        self,
        python: Path,
        module: str,
        load: Mapping[str, Any],
        *,
        threads: int,
        log: Path,
        timeout_s: float = 180,
    ) -> None:
        """Start the process and wait until the contender is loaded.

        Args:
            python: interpreter of its environment.
            module: of peers/.
            load: arguments of the module's `load`, besides threads.
            threads: that it may use.
            log: file for whatever its libraries print.
            timeout_s: for loading.

        Raises:
            WorkerProblem: it did not load.
        """
        spec = {"module": module, "load": {**load, "threads": threads}}
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._buffer = b""
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), str(PEERS / "worker.py"), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=worker_environment(python, threads),
            )
        try:
            self._receive(timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], *, timeout_s: float = 300) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerProblem: the contender failed, ended, or took too long, which ends it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerProblem(f"the process ended: {self._last_words()}") from error
        return self._receive(timeout_s)

    def sample(self, request: Mapping[str, Any], *, timeout_s: float = 300) -> Sample:
        """Send a request that is timed, and watch what other processes do meanwhile.

        Raises:
            WorkerProblem: as `ask`.
        """
        meter = Meter(self.pid)
        seconds = self.ask(request, timeout_s=timeout_s)["seconds"]
        return Sample(tuple(seconds), meter.foreign())

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not yet written has no reader any more
                    continue

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.close()
                    raise WorkerProblem(f"no answer within {timeout_s:.0f} s")
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    self._process.wait()
                    raise WorkerProblem(f"the process ended: {self._last_words()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerProblem(tidy(answer["error"]))
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        code = self._process.returncode
        return tidy(lines[-1]) if lines else f"exit status {code}, and it said nothing"

    def __enter__(self) -> Worker:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def worker_environment(python: Path, threads: int) -> dict[str, str]:
    """This process's environment with the thread counts that libraries read, and no network.

    The interpreter that runs the harness finds minibert in the checkout; every other one finds only
    what is installed in its own environment.
    """
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    environment.pop("PYTHONPATH", None)
    if str(python) == sys.executable:
        environment["PYTHONPATH"] = str(CHECKOUT)
    environment.update(
        RAYON_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="true",
        HF_HUB_OFFLINE="1",
        PYTHONNOUSERSITE="1",
    )
    return environment
