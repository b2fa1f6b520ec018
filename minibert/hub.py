"""From a model's name to a folder: a local path, the HuggingFace cache, or the hub.

A path that exists is used as it is and never opens a socket; `huggingface_hub` is imported only
for names that are not folders.
"""

from __future__ import annotations

import os
from pathlib import Path

from minibert.errors import MissingDependencyError, ModelNotFoundError

_WANTED = ["*.json", "*.txt", "*.safetensors", "[0-9]*_*/*"]
_UNWANTED = ["onnx/*", "openvino/*", "*.bin", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pt"]
_DEFAULT_ORGANISATION = "sentence-transformers"
# Models older than the hub's organisations: as sentence-transformers, whose list this is, and
# transformers do, they are asked for by their bare name, in upper or lower case.
_WITHOUT_ORGANISATION = frozenset(
    """
    albert-base-v1 albert-base-v2 albert-large-v1 albert-large-v2 albert-xlarge-v1
    albert-xlarge-v2 albert-xxlarge-v1 albert-xxlarge-v2 bert-base-cased-finetuned-mrpc
    bert-base-cased bert-base-chinese bert-base-german-cased bert-base-german-dbmdz-cased
    bert-base-german-dbmdz-uncased bert-base-multilingual-cased bert-base-multilingual-uncased
    bert-base-uncased bert-large-cased-whole-word-masking-finetuned-squad
    bert-large-cased-whole-word-masking bert-large-cased
    bert-large-uncased-whole-word-masking-finetuned-squad
    bert-large-uncased-whole-word-masking bert-large-uncased camembert-base ctrl
    distilbert-base-cased-distilled-squad distilbert-base-cased distilbert-base-german-cased
    distilbert-base-multilingual-cased distilbert-base-uncased-distilled-squad
    distilbert-base-uncased-finetuned-sst-2-english distilbert-base-uncased distilgpt2
    distilroberta-base gpt2-large gpt2-medium gpt2-xl gpt2 openai-gpt
    roberta-base-openai-detector roberta-base roberta-large-mnli roberta-large-openai-detector
    roberta-large t5-11b t5-3b t5-base t5-large t5-small transfo-xl-wt103 xlm-clm-ende-1024
    xlm-clm-enfr-1024 xlm-mlm-100-1280 xlm-mlm-17-1280 xlm-mlm-en-2048 xlm-mlm-ende-1024
    xlm-mlm-enfr-1024 xlm-mlm-enro-1024 xlm-mlm-tlm-xnli15-1024 xlm-mlm-xnli15-1024
    xlm-roberta-base xlm-roberta-large-finetuned-conll02-dutch
    xlm-roberta-large-finetuned-conll02-spanish xlm-roberta-large-finetuned-conll03-english
    xlm-roberta-large-finetuned-conll03-german xlm-roberta-large xlnet-base-cased
    xlnet-large-cased
    """.split()
)


def find_model(
    path_or_name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find the folder of a model, downloading it where allowed.

    Args:
        path_or_name: a folder, or a hub name ("org/name"; a bare name is looked for under
            sentence-transformers, except those that have no organisation, such as
            "bert-base-uncased": as that library does).
        revision: branch, tag or commit on the hub.
        token: hub token, or True for the stored one.
        cache_folder: where downloads go; the hub library's cache when None.
        local_files_only: use only what is on this machine; no network.

    Raises:
        ModelNotFoundError: no such folder, not in the cache, not on the hub, or no network.
        MissingDependencyError: a hub name without huggingface_hub installed.
    """
    if not isinstance(path_or_name, str | os.PathLike):
        raise ModelNotFoundError(f"path_or_name must be a str or a path, got {path_or_name!r}")
    name = os.fspath(path_or_name)
    try:
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            if not os.access(folder, os.R_OK | os.X_OK):
                raise ModelNotFoundError(f"{folder} must be a folder that you may read, it is not")
            return folder
        is_file = folder.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise ModelNotFoundError(f"model folder {name!r:.200} must exist: {error!s:.200}") from None
    if is_file:
        raise ModelNotFoundError(f"{folder} must be a model folder, it is a file")
    if not name or name[0] in "./~" or "\\" in name or name.count("/") > 1:
        raise ModelNotFoundError(f"model folder {name!r} must exist, there is none")
    if "/" not in name and name.lower() not in _WITHOUT_ORGANISATION:
        name = f"{_DEFAULT_ORGANISATION}/{name}"
    return _from_hub(name, revision, token, cache_folder, local_files_only)


def _from_hub(
    name: str,
    revision: str | None,
    token: str | bool | None,
    cache_folder: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingDependencyError(
            f"{name!r} is no folder here, and fetching it from the hub needs huggingface_hub: "
            "pip install 'minibert-engine[hub]'"
        ) from None
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=None if cache_folder is None else os.fspath(cache_folder),
                local_files_only=local_files_only,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
            )
        )
    except HFValidationError as error:
        raise ModelNotFoundError(f"{name!r} is neither a folder nor a hub name: {error}") from None
    except LocalEntryNotFoundError:
        reason = "local_files_only is set" if local_files_only else "the hub cannot be reached"
        wanted = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
        raise ModelNotFoundError(
            f"{wanted} is neither a folder nor in the local cache, and {reason}"
        ) from None
    except (OSError, ValueError) as error:  # no such repository, no rights, no network
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelNotFoundError(f"{name!r} could not be fetched: {first_line}") from error
