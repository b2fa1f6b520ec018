"""Texts to token ids as a model wants them: its prompt in front, cut to its length, counted."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from minibert import log
from minibert.arguments import is_integer
from minibert.errors import InputError, TruncationError, TruncationWarning
from minibert.loading import LoadedModel
from minibert.pooling import skipped_tokens
from minibert.sentence_config import DEFAULT_PROMPTS
from minibert.tokenizer import TokenizedTexts, TruncationSide

Truncation = Literal["warn", "error", "silent"]


class Preparation:
    """The model's prompts, lengths and tokenizer, and what was cut so far. Thread-safe."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        prompts: Mapping[str, str],
        default_prompt_name: str | None,
        truncation: Truncation,
        truncation_side: TruncationSide,
    ) -> None:
        """Hold the settings of an engine, already checked."""
        self._loaded = loaded
        self.prompts = dict(prompts)
        self.default_prompt_name = default_prompt_name
        self.truncation = truncation
        self.truncation_side = truncation_side
        self.counts = {"texts": 0, "tokens": 0, "truncated": 0}
        self._warned = False
        self._lock = threading.Lock()

    def choose_prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """The text that goes before every input of a call, "" for none.

        Raises:
            InputError: no such name, or not a str.
        """
        if prompt is not None:
            if not isinstance(prompt, str):
                raise InputError(f"prompt must be a str, got {type(prompt).__name__}")
            if prompt_name is not None:
                log.warning("prompt and prompt_name were both given: prompt_name is not used")
            return prompt
        name = prompt_name if prompt_name is not None else self.default_prompt_name
        if name is None:
            return ""
        named = {**DEFAULT_PROMPTS, **self.prompts}
        if not isinstance(name, str) or name not in named:
            raise InputError(f"prompt_name must be one of {sorted(named)}, got {name!r}")
        return named[name]

    def with_prompt(self, names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        """Options of `encode` with the first of these prompts that the model has, or with none."""
        if options.get("prompt") is None and options.get("prompt_name") is None:
            found = next((name for name in names if name in self.prompts), None)
            return {**options, "prompt": ""} if found is None else {**options, "prompt_name": found}
        return options

    def measure(self, texts: Sequence[str]) -> tuple[dict[str, int], int]:
        """Sizes of a call with the default prompt, and the bytes of prompted copies of its texts.

        Returns:
            Keywords of `Runner.memory_bound`, and bytes.
        """
        prompt = self.choose_prompt(None, None)
        prompted = [prompt + text for text in texts]
        tokenized = self._loaded.tokenizer.encode(prompted, max_length=self._loaded.max_length)
        sizes = {
            "num_texts": len(prompted),
            "num_tokens": sum(tokenized.seqlens),
            "max_seqlen": max(tokenized.seqlens, default=0),
            "characters": max(map(len, prompted), default=0),
        }
        return sizes, sum(map(sys.getsizeof, prompted)) if prompt else 0

    def prepare(
        self,
        texts: Sequence[str],
        *,
        prompt: str,
        max_length: int | None,
        truncation_side: TruncationSide | None,
    ) -> tuple[TokenizedTexts, int]:
        """Tokenize the texts of a call.

        Args:
            texts: without the prompt.
            prompt: from `choose_prompt`.
            max_length: of this call, None for the model's.
            truncation_side: of this call, None for the engine's.

        Returns:
            The token ids, and the tokens at the start of each text that pooling leaves out.

        Raises:
            InputError: max_length is out of range, or the prompt fills it.
            TruncationError: a text is too long and the engine was told to refuse it.
        """
        limit = self._choose_max_length(max_length)
        skip = self._skip(prompt, limit)
        tokenized = self._loaded.tokenizer.encode(
            [prompt + text for text in texts],
            max_length=limit,
            truncation_side=truncation_side or self.truncation_side,
        )
        self._count(tokenized, limit)
        return tokenized, skip

    def _choose_max_length(self, max_length: int | None) -> int:
        if max_length is None:
            return self._loaded.max_length
        most = self._loaded.config.max_tokens
        if not is_integer(max_length):
            raise InputError(f"max_length must be a number, got {max_length!r}")
        if not 1 <= max_length <= most:
            raise InputError(
                f"max_length must be 1 to {most}, the positions of this model, got {max_length}"
            )
        return int(max_length)

    def _skip(self, prompt: str, max_length: int) -> int:
        if not prompt:
            return 0
        tokens = self._loaded.tokenizer.prompt_length(prompt)
        skip = skipped_tokens(self._loaded.steps, tokens)
        if skip >= max_length - 1:
            raise InputError(
                f"prompt must leave room for a text within max_length = {max_length}, "
                f"it has {tokens} tokens and the pooling excludes them"
            )
        return skip

    def _count(self, tokenized: TokenizedTexts, max_length: int) -> None:
        cut, seqlens = tokenized.truncated, tokenized.seqlens
        if cut and self.truncation == "error":
            raise TruncationError(
                f"text {cut[0]} must have at most max_length = {max_length} tokens, "
                f"got {tokenized.num_tokens_before[cut[0]]}"
                + (f" ({len(cut)} such texts)" if len(cut) > 1 else "")
            )
        with self._lock:
            self.counts["texts"] += len(seqlens)
            self.counts["tokens"] += sum(seqlens)
            self.counts["truncated"] += len(cut)
            warn = bool(cut) and self.truncation == "warn" and not self._warned
            self._warned = self._warned or warn
        if warn:
            longest = max(tokenized.num_tokens_before)
            warnings.warn(
                f"{len(cut)} of {len(seqlens)} texts had more than max_length = {max_length} "
                f"tokens and were cut (the longest has {longest}); this is said once, "
                "engine.truncated_texts counts on",
                TruncationWarning,
                stacklevel=4,
            )
