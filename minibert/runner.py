"""Runs planned batches over the streams of one device or several, within a memory limit.

Workers take batches from a shared counter, so a slow core or a busy GPU never holds up the others;
which worker and which device took a batch has no influence on its result. Callers in several
threads share the streams.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert import model, tokenizer
from minibert.batch import Batch, IntArray, pack
from minibert.budget import Budget, make_budget
from minibert.config import EncoderConfig
from minibert.errors import DeviceMemoryError, EngineClosedError, InputError, MemoryLimitError
from minibert.loading import LoadedModel, OpenedModel
from minibert.ops.interface import Ops
from minibert.ops.select import close_all
from minibert.plan import plan_batches
from minibert.pooling import PreparedStep, apply_steps, prepare_steps
from minibert.slots import Slots
from minibert.tokenizer import TokenizedTexts

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

OnBatch = Callable[[NDArray[np.int32], NDArray[Any], NDArray[Any] | None, IntArray], None]
"""Receives text indices, embeddings, packed hidden states (or None) and cu_seqlens of a batch."""

_FEW_TEXTS = 8  # usually one batch
_BYTES_PER_TEXT = 512  # two small arrays and the numbers that go with them
_ONE_TOKEN_TYPE = ("roberta", "xlm-roberta", "camembert")  # their tokenizers tell no types apart


class DeviceModel(NamedTuple):
    """A model as one device has it: its Ops, and what `prepare` laid out there."""

    ops: Ops
    parameters: model.EncoderParameters
    steps: tuple[PreparedStep, ...]

    def scratch_bytes(
        self, config: EncoderConfig, num_tokens: int, max_seqlen: int, num_seqs: int
    ) -> int:
        """Upper bound of one batch's scratch memory, in bytes."""
        shape = model.forward_shape(
            config,
            self.parameters,
            num_tokens=num_tokens,
            max_seqlen=max_seqlen,
            num_seqs=num_seqs,
        )
        return self.ops.scratch_bytes(shape)


class _Call(NamedTuple):
    """What all batches of a call have in common."""

    texts: TokenizedTexts
    skip: int
    hidden_states: bool
    on_batch: OnBatch


class Runner:
    """The prepared model and the machinery that runs batches through it. Thread-safe.

    Attributes:
        models: the model on each device; all devices give the same bytes.
        ops: those of the first device, which stand for all where only sizes matter.
        budget: limits of the batches of each device.
        batches: that each device has computed.
    """

    def __init__(
        self, models: Sequence[DeviceModel], config: EncoderConfig, budget: Budget
    ) -> None:
        """Hold the prepared parts; nothing runs yet."""
        self.models = tuple(models)
        self.ops = self.models[0].ops
        self.config = config
        self.budget = budget
        self.batches = [0] * len(self.models)
        self._executor: ThreadPoolExecutor | None = None
        self._slots: Slots
        self._lock: threading.Lock
        self._closed: bool
        self._reset()

    def expect(self, num_texts: int) -> None:
        """Texts are tokenized now: where they make one batch, what sleeps may wake meanwhile."""
        if num_texts <= _FEW_TEXTS:
            self.ops.expect_batch()

    def run(
        self,
        texts: TokenizedTexts,
        on_batch: OnBatch,
        *,
        skip: int = 0,
        batch_size: int | None = None,
        hidden_states: bool = False,
    ) -> None:
        """Compute the embeddings of all texts, batch by batch.

        Args:
            texts: from the tokenizer.
            on_batch: receives each batch's results; called by one thread at a time.
            skip: tokens at the start of each text that pooling leaves out.
            batch_size: most texts of a batch, besides the token budget.
            hidden_states: also hand over the packed last hidden states.

        Raises:
            InputError: a token id that the model's tables do not have, or a text without tokens.
            MemoryLimitError: one text alone needs more than the limit.
        """
        seqlens = texts.seqlens
        self._check(seqlens)
        plan = plan_batches(
            seqlens,
            max_batch_tokens=self.budget.max_batch_tokens,
            batch_size=batch_size,
            num_streams=self.num_streams,
        )
        if not plan:
            return
        if self._pid != os.getpid():  # a fork has no threads of its parent
            self._reset()
        if len(plan) == 1:
            self._run_on_stream(_Call(texts, skip, hidden_states, on_batch), plan[0], alone=True)
            return
        counter = itertools.count()
        lock = threading.Lock()
        failed: list[bool] = []  # not empty once a worker has failed

        def deliver(*results: Any) -> None:
            with lock:
                on_batch(*results)

        call = _Call(texts, skip, hidden_states, deliver)

        def work() -> None:
            try:
                for i in iter(lambda: next(counter), None):
                    if i >= len(plan) or failed:
                        return
                    self._run_on_stream(call, plan[i], alone=False)
            except BaseException:
                failed.append(True)
                raise

        workers = min(len(plan), self.num_streams)
        if workers == 1:
            work()
            return
        try:
            futures = [self._pool().submit(work) for _ in range(workers - 1)]
        except RuntimeError:  # shut down between the two calls
            self._check_open()
            raise
        try:
            work()
        finally:
            # One that has not begun stands behind another call's work, and has nothing left to do.
            errors = [None if future.cancel() else future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    @property
    def num_streams(self) -> int:
        """Batches that run at once, on all devices together."""
        return len(self.models) * self.budget.num_streams

    def scratch_bytes(self, num_tokens: int, max_seqlen: int, num_seqs: int) -> int:
        """See `DeviceModel.scratch_bytes`: the same on every device."""
        return self.models[0].scratch_bytes(self.config, num_tokens, max_seqlen, num_seqs)

    def memory_bound(
        self,
        *,
        num_texts: int,
        num_tokens: int,
        max_seqlen: int,
        characters: int,
        dimension: int,
    ) -> int:
        """Upper bound of what a call takes, in bytes.

        Args:
            num_texts: texts of the call.
            num_tokens: tokens of all of them, after cutting.
            max_seqlen: tokens of the longest of them; one above the budget is a batch by itself.
            characters: of the longest text.
            dimension: width of an embedding.
        """
        most = max(self.budget.max_batch_tokens, max_seqlen)
        longest = min(most, self.config.max_tokens)
        memories = len(self.models) * self.budget.num_scratch
        scratch = memories * self.scratch_bytes(most, longest, most)
        ids = 8 * num_tokens + _BYTES_PER_TEXT * num_texts
        rows = 4 * dimension * num_texts * 4  # the result, and copies while it is normalised
        return scratch + ids + rows + tokenizer.scratch_bytes(characters)

    def close(self) -> None:
        """Let running batches end, then end the threads and give back the device.

        Calls that have batches left raise EngineClosedError at their next one.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)
        with self._slots.all():
            close_all([here.ops for here in self.models])

    def _reset(self) -> None:
        self._closed = False
        self._pid = os.getpid()
        self._executor = None
        self._slots = Slots(len(self.models), self.budget.num_streams)
        self._lock = threading.Lock()

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            self._check_open()
            if self._executor is None:
                from concurrent.futures import ThreadPoolExecutor  # not at the start of a process

                self._executor = ThreadPoolExecutor(
                    max(1, self.num_streams - 1), thread_name_prefix="minibert"
                )
            return self._executor

    def _run_on_stream(self, call: _Call, indices: NDArray[np.int32], *, alone: bool) -> None:
        """Run a batch on a stream of the device that has most to spare."""
        with self._slots.one() as number:
            self._check_open()
            here = self.models[number]
            with here.ops.stream(alone=alone) as ops:
                self._run_batch(DeviceModel(ops, here.parameters, here.steps), call, indices)
            with self._lock:
                self.batches[number] += 1

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine must be open, it was closed: load it again")

    def _check(self, seqlens: list[int]) -> None:
        if 0 in seqlens:
            raise InputError(
                f"text {seqlens.index(0)} must have at least one token, its tokenizer gave none"
            )
        limit = self.budget.memory_limit
        if limit is not None and seqlens:
            longest = seqlens.index(max(seqlens))
            needed = self.scratch_bytes(seqlens[longest], seqlens[longest], 1)
            if needed > limit:
                parts = self.budget.num_scratch
                share = f", {limit} for each of {parts} streams" if parts > 1 else ""
                raise MemoryLimitError(
                    f"text {longest} of {seqlens[longest]} tokens must fit memory_limit = "
                    f"{limit * parts} bytes{share}, it needs {needed}: raise the limit or lower "
                    "max_length"
                )

    def _run_batch(self, here: DeviceModel, call: _Call, indices: NDArray[np.int32]) -> None:
        batch = self._pack(call.texts, indices, call.skip)

        def compute(ops: Ops, uploaded: Any) -> tuple[Any, ...]:
            hidden = model.encode(ops, uploaded, here.parameters, self.config)
            rows = apply_steps(ops, hidden, uploaded, here.steps)
            return (rows, hidden) if call.hidden_states else (rows,)

        results: tuple[Any, ...] | None = None
        try:
            results = here.ops.forward(batch, compute, key=call.hidden_states)
        except InputError:
            error = self._wrong_id(call.texts, indices)
            if error is None:
                raise
            raise error from None
        except (MemoryError, DeviceMemoryError):
            if indices.size == 1:
                raise
        if results is None:
            # The device is fuller than planned: halves need less, and no text depends on the split.
            # Not inside the handler, whose traceback would keep the failed pass's arrays alive.
            middle = indices.size // 2
            for half in (indices[:middle], indices[middle:]):
                self._run_batch(here, call, half)
            return
        rows, *states = results
        call.on_batch(indices, rows, states[0] if states else None, batch.cu_seqlens)

    def _pack(self, texts: TokenizedTexts, indices: NDArray[np.int32], skip: int) -> Batch:
        order = indices.tolist()
        return pack(
            [texts.input_ids[i] for i in order],
            token_type_ids=token_types(self.config, [texts.token_type_ids[i] for i in order]),
            first_position=self.config.first_position,
            pad_token_id=self.config.pad_token_id if self.config.first_position else None,
            skip=[min(skip, texts.input_ids[i].size - 1) for i in order] if skip else None,
        )

    def _wrong_id(self, texts: TokenizedTexts, indices: NDArray[np.int32]) -> InputError | None:
        """The error that names the first text with an id outside its table, None without one."""
        tables = [("input_ids", texts.input_ids, self.config.vocab_size)]
        types = token_types(self.config, texts.token_type_ids)
        if types is not None:
            tables.append(("token_type_ids", types, self.config.type_vocab_size))
        for name, ids, rows in tables:
            for i in sorted(indices.tolist()):
                if ids[i].max() >= rows:
                    return InputError(
                        f"text {i}: {name} must be from 0 to {rows - 1}, got {ids[i].max()}: the "
                        "tokenizer and config.json belong to different models"
                    )
        return None


def token_types(
    config: EncoderConfig, found: list[NDArray[np.int32]]
) -> list[NDArray[np.int32]] | None:
    """Token types that a tokenizer gave, or None where the model has none to tell apart.

    As transformers does: its tokenizers of the RoBERTa family return none, and the model takes 0.
    """
    size = config.type_vocab_size
    if size == 0 or (size == 1 and config.model_type in _ONE_TOKEN_TYPE):
        return None
    return found


def prepare_model(ops: Ops, opened: OpenedModel) -> DeviceModel:
    """Hand a model's weights to a device."""
    parameters = model.prepare(ops, opened.weights, opened.config)
    return DeviceModel(ops, parameters, prepare_steps(ops, opened.steps))


def make_runner(
    models: Sequence[DeviceModel],
    loaded: LoadedModel,
    *,
    max_batch_tokens: int | None,
    memory_limit: int | None,
) -> Runner:
    """Choose the limits of the batches of a model on one device or several.

    Args:
        models: at least one, on devices of one kind; the caller closes them where this fails.
        loaded: from `load_model`.
        max_batch_tokens: None for the device's choice.
        memory_limit: bytes of all running batches of a device together, None for no limit.

    Raises:
        MemoryLimitError: not even one token fits.
    """
    config, ops = loaded.config, models[0].ops
    budget = make_budget(
        partial(models[0].scratch_bytes, config),
        max_batch_tokens=max_batch_tokens or ops.preferred_batch_tokens,
        max_length=loaded.max_length,
        num_streams=ops.num_streams,
        num_idle_streams=ops.num_idle_streams,
        memory_limit=memory_limit,
    )
    return Runner(models, config, budget)
