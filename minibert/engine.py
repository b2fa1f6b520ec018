"""Engine: texts in, embeddings out."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibert import log
from minibert.arguments import (
    as_texts,
    check_conversion,
    check_count,
    check_folder,
    check_names,
    check_output,
    check_prompts,
    check_truncate_dim,
    check_truncation,
)
from minibert.assembly import Parts, Wishes, assemble
from minibert.collect import as_items, as_tokens, collect, finished
from minibert.errors import EngineClosedError
from minibert.hub import find_model
from minibert.kernels.cpu.background import start_background
from minibert.loading import open_model, parse_memory
from minibert.ops.select import DeviceOptions, check_devices, check_float_layers
from minibert.pooling import output_dimension
from minibert.precision import Precision
from minibert.preparation import Truncation
from minibert.similarity import similarity
from minibert.stream import StreamPrecision, encoded, in_chunks
from minibert.tokenizer_files import TruncationSide

if TYPE_CHECKING:
    from minibert.fidelity import Fidelity

OutputValue = Literal["sentence_embedding", "token_embeddings"]


class Engine:
    """A sentence-embedding model, loaded and ready. Made by `Engine.from_pretrained`.

    One engine may be called from many threads. A text's embedding never depends on the texts
    beside it, on their order or on the thread.
    """

    def __init__(self, parts: Parts) -> None:
        """Hold the parts; `from_pretrained` is the way to make an engine."""
        self._loaded = parts.loaded
        self._runner = parts.runner
        self._preparation = parts.preparation
        self._device_reason = parts.device_reason
        self._truncate_dim = parts.truncate_dim
        self._similarity = parts.similarity_function
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | os.PathLike[str],
        *,
        device: str = "auto",
        devices: Sequence[str] | None = None,
        dtype: str | None = None,
        matmul_precision: str = "highest",
        max_batch_tokens: int | None = None,
        memory_limit: int | str | None = None,
        max_length: int | None = None,
        truncation: Truncation = "warn",
        truncation_side: TruncationSide | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        similarity_function: str | None = None,
        threads: int | None = None,
        batch_invariant: bool = True,
        float_layers: Collection[str] = (),
        packed_weights: str | os.PathLike[str] | None = None,
        ignore_config_keys: Collection[str] = (),
        revision: str | None = None,
        token: str | bool | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Engine:
        """Load a model.

        Args:
            path_or_name: a folder, or a name in the HuggingFace cache or on the hub.
            device: "auto" (a GPU where one is usable, else the CPU), "cpu", "cuda", "cuda:1",
                "numpy" (no kernels), or "emulator" (the CUDA kernels without a GPU: slow, for
                checking).
            devices: in the place of `device`, several GPUs such as ["cuda:0", "cuda:1"] that share
                the batches; each holds the whole model. They must have one compute capability, so
                that a text has the same bytes on each.
            dtype: how linear layers compute: "float32", "float16", "bfloat16" or "int8", as far
                as the device can; "float64" on NumPy, for checking. None is int8 for a model from
                `minibert quantize` where the device has it, and float32 for all others.
            matmul_precision: for float32: "highest", "high" or "medium"; on CUDA only "highest".
            max_batch_tokens: most tokens of one batch, a longer text is a batch by itself; the
                device's choice when None.
            memory_limit: bytes, or a size such as "512MB", that running batches may take together
                beyond the loaded model, on each device; batches are made smaller to fit.
            max_length: most tokens of a text, special tokens included; from the files when None.
            truncation: a longer text is cut with one warning ("warn"), refused ("error") or cut
                without a word ("silent").
            truncation_side: which end of a text is cut off, "right" or "left"; from the files when
                None.
            prompts: name -> text put before an input; added to the model's own.
            default_prompt_name: prompt of calls that name none; the model's own when None.
            truncate_dim: leading dimensions to keep; the model's own setting when None.
            similarity_function: cosine, dot, euclidean or manhattan; the model's own when None.
            threads: most threads of the CPU kernels; all usable cores when None.
            batch_invariant: False permits CUDA kernels for up to 32 tokens that are quicker, and
                whose last bits in float16 and bfloat16 depend on the batch.
            float_layers: linear layers that int8 leaves in float on CUDA, such as "layer.0.qkv";
                elsewhere `minibert quantize` chooses them.
            packed_weights: folder where the CPU kernels keep the weights as they laid them out:
                processes then share them, and start sooner. It must be writable by none who may
                not change the model.
            ignore_config_keys: keys of config.json known to have no effect on inference.
            revision: branch, tag or commit on the hub.
            token: hub token, or True for the stored one.
            cache_folder: where downloads go.
            local_files_only: never use the network.

        Raises:
            ModelNotFoundError: the model cannot be found or fetched.
            CheckpointError: its files are damaged or ask for something unsupported.
            DeviceError: the device cannot do what was asked.
            MemoryLimitError: memory_limit is too small for one token.
            InputError: an argument is out of range.
        """
        check_truncation(truncation, truncation_side)
        check_count("max_batch_tokens", max_batch_tokens)
        check_prompts(prompts)
        check_names("ignore_config_keys", ignore_config_keys)
        options = DeviceOptions(
            dtype=dtype,
            matmul_precision=matmul_precision,
            threads=threads,
            batch_invariant=batch_invariant,
            float_layers=check_float_layers(float_layers),
            packed_weights=check_folder("packed_weights", packed_weights),
        )
        wishes = Wishes(
            device=device,
            devices=devices,
            options=options,
            max_batch_tokens=max_batch_tokens,
            memory_limit=parse_memory(memory_limit),
            max_length=max_length,
            truncation=truncation,
            truncation_side=truncation_side,
            prompts=prompts or {},
            default_prompt_name=default_prompt_name,
            truncate_dim=truncate_dim,
            similarity_function=similarity_function,
        )
        check_devices(device, devices, options)
        folder = find_model(
            path_or_name,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        with start_background() as background:
            opened = open_model(
                folder,
                ignore_config_keys=ignore_config_keys,
                layer_by_layer=True,
                background=background,
            )
            return cls(assemble(opened, wishes, background))

    @property
    def dimension(self) -> int:
        """Width of the sentence embeddings, after truncate_dim."""
        full = output_dimension(self._loaded.steps, self._loaded.config.hidden_size)
        return min(full, self._truncate_dim or full)

    @property
    def max_length(self) -> int:
        """Most tokens of a text, special tokens included."""
        return self._loaded.max_length

    @property
    def prompts(self) -> dict[str, str]:
        """Name -> prompt; a copy."""
        return dict(self._preparation.prompts)

    @property
    def folder(self) -> Path:
        """Where the model was loaded from."""
        return self._loaded.folder

    @property
    def truncated_texts(self) -> int:
        """Texts that were cut to `max_length` since the engine was made."""
        return self._preparation.counts["truncated"]

    def memory_bound(self, texts: Sequence[str]) -> int:
        """Most bytes that `encode(texts)` takes beyond the loaded engine and the texts themselves.

        Scratch memory of all streams, token ids, the tokenizer's own, and the result.
        """
        sizes = self._preparation.measure(as_texts(texts)[0])
        dimension = output_dimension(self._loaded.steps, self._loaded.config.hidden_size)
        return self._runner.memory_bound(**sizes, dimension=dimension)

    def explain(self) -> str:
        """A report of every decision and where it came from."""
        from minibert.explain import explain

        return explain(
            self._loaded,
            self._runner,
            self._preparation,
            device_reason=self._device_reason,
            dimension=self.dimension,
            similarity_function=self._similarity,
        )

    def encode(
        self,
        inputs: str | Sequence[str] | NDArray[Any] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue | None = "sentence_embedding",
        precision: Precision = "float32",
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        max_length: int | None = None,
        truncation_side: TruncationSide | None = None,
        sentences: str | Sequence[str] | None = None,
    ) -> Any:
        """Turn texts into embeddings, with the semantics of `SentenceTransformer.encode`.

        Args:
            inputs: one text, or several.
            prompt_name: a name of `prompts`, or "query" or "document", which are empty where the
                model lacks them; its text is put before every input.
            prompt: a prompt itself; takes precedence over prompt_name.
            batch_size: most texts of a batch, besides the token budget.
            show_progress_bar: on standard error; None shows it where logging is at INFO or DEBUG.
            output_value: "sentence_embedding"; "token_embeddings" for the last hidden states of
                each text; None for a dict with both and the token ids.
            precision: "float32", "int8", "uint8", "binary" or "ubinary".
            normalize_embeddings: make every vector length 1, after truncate_dim.
            truncate_dim: leading dimensions to keep; the engine's setting when None.
            convert_to_numpy: True; accepted so that existing calls work.
            convert_to_tensor: False; likewise.
            max_length: most tokens of a text in this call; at most the model's positions.
            truncation_side: "right" or "left"; the engine's setting when None.
            sentences: older name of `inputs`.

        Returns:
            One text: (dimension,); several: (num_texts, dimension), in the order given. With
            token_embeddings: (seqlen, hidden_size), or a list of them; with None a dict, or a list.

        Raises:
            InputError: an argument or a text that cannot be taken.
            TruncationError: a text is too long and the engine was told to refuse it.
            MemoryLimitError: one text alone passes memory_limit.
            EngineClosedError: after `close`.
        """
        texts, single = as_texts(inputs, sentences)
        check_output(output_value, precision)
        check_conversion(convert_to_numpy, convert_to_tensor)
        full = output_dimension(self._loaded.steps, self._loaded.config.hidden_size)
        check_truncate_dim(truncate_dim, full)
        check_count("batch_size", batch_size)
        self._check_open()
        self._runner.expect(len(texts))
        tokenized, skip = self._preparation.prepare(
            texts,
            prompt=self._preparation.choose_prompt(prompt, prompt_name),
            max_length=max_length,
            truncation_side=truncation_side,
        )
        if show_progress_bar is None:
            show_progress_bar = log.is_verbose()
        rows, states = collect(
            self._runner,
            tokenized,
            skip=skip,
            batch_size=batch_size,
            dimension=full,
            hidden_states=output_value != "sentence_embedding",
            show_progress_bar=show_progress_bar,
        )
        rows = rows[:, : truncate_dim or self._truncate_dim]
        if output_value == "token_embeddings":
            return states[0] if single else states
        if output_value is None:
            items = as_items(tokenized, rows, states)
            return items[0] if single else items
        rows = finished(rows, normalize=normalize_embeddings, precision=precision)
        return rows[0] if single else rows

    def encode_query(
        self,
        inputs: str | Sequence[str] | NDArray[Any] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue | None = "sentence_embedding",
        precision: Precision = "float32",
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        max_length: int | None = None,
        truncation_side: TruncationSide | None = None,
        sentences: str | Sequence[str] | None = None,
    ) -> Any:
        """`encode` with the model's "query" prompt, or none: never the default one."""
        if prompt is None and prompt_name is None:
            prompt = self._preparation.first_prompt("query")
        return self.encode(
            inputs,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            max_length=max_length,
            truncation_side=truncation_side,
            sentences=sentences,
        )

    def encode_document(
        self,
        inputs: str | Sequence[str] | NDArray[Any] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue | None = "sentence_embedding",
        precision: Precision = "float32",
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        max_length: int | None = None,
        truncation_side: TruncationSide | None = None,
        sentences: str | Sequence[str] | None = None,
    ) -> Any:
        """`encode` with the first of "document", "passage", "corpus" that is a prompt, or none."""
        if prompt is None and prompt_name is None:
            prompt = self._preparation.first_prompt("document", "passage", "corpus")
        return self.encode(
            inputs,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            max_length=max_length,
            truncation_side=truncation_side,
            sentences=sentences,
        )

    def encode_stream(
        self,
        inputs: Iterable[str],
        *,
        chunk_size: int = 4096,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: StreamPrecision = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        truncation_side: TruncationSide | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Encode more texts than fit in memory.

        Args:
            inputs: any iterable; read `chunk_size` texts at a time.
            chunk_size: texts that are tokenized, sorted and encoded together.
            prompt_name: as in `encode`, and so the others.
            prompt: a prompt itself.
            batch_size: most texts of a batch.
            show_progress_bar: one for each chunk.
            precision: "float32", "binary" or "ubinary"; int8 and uint8 are refused, since their
                ranges would differ from chunk to chunk.
            normalize_embeddings: make every vector length 1.
            truncate_dim: leading dimensions to keep.
            max_length: most tokens of a text.
            truncation_side: "right" or "left".

        Returns:
            An iterator over (n, dimension) arrays, n at most `chunk_size`; together all texts, in
            order.

        Raises:
            InputError: as `encode`: at once for an argument, at its chunk for a text.
        """
        encode = partial(
            self.encode,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            precision=precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            max_length=max_length,
            truncation_side=truncation_side,
        )
        chunks = in_chunks(inputs, chunk_size, precision)
        encode([], show_progress_bar=False)  # refuses what would be refused with every chunk
        return encoded(partial(encode, show_progress_bar=show_progress_bar), chunks)

    def similarity(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Scores of all pairs, (n, m), by the model's similarity function."""
        return similarity(first, second, self._similarity)

    def fidelity(
        self, texts: Sequence[str], *, against: Engine | str | os.PathLike[str] | NDArray[Any]
    ) -> Fidelity:
        """How much of another model's embeddings of these texts this one keeps.

        Args:
            texts: at least three, and none that calibrated either model.
            against: the original: an engine, a model (loaded in float32 on the same machine), or
                its embeddings (num_texts, dimension).

        Raises:
            InputError: fewer than three texts, or embeddings of another shape.
        """
        from minibert.fidelity import compare_with

        return compare_with(self, texts, against)

    def tokenize(self, inputs: str | Sequence[str]) -> Any:
        """Tokens of texts, uncut, special tokens included.

        Returns:
            For each text a dict: `input_ids` and `token_type_ids` int32 arrays, `tokens` (str) and
            `offsets` (character begin and end in the text); one dict for one text.
        """
        self._check_open()
        texts, single = as_texts(inputs)
        items = as_tokens(self._loaded.tokenizer.encodings(texts))
        return items[0] if single else items

    def token_count(self, inputs: str | Sequence[str]) -> Any:
        """Tokens of each text before cutting, special tokens included: a list, or one int."""
        self._check_open()
        texts, single = as_texts(inputs)
        tokenized = self._loaded.tokenizer.encode(texts, max_length=self._loaded.max_length)
        counts = tokenized.num_tokens_before
        return counts[0] if single else counts

    def close(self) -> None:
        """Give back threads and device memory; calls after this raise EngineClosedError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._runner.close()

    def __enter__(self) -> Engine:
        """The engine itself; it is closed when the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the engine."""
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine must be open, it was closed: load it again")
