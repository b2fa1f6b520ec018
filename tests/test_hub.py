from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine, hub
from minibert.errors import MissingDependencyError, ModelNotFoundError
from minibert.hub import find_model
from tests.checkpoints import HIDDEN_SIZE, save_sentence_files, save_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("hub") / "model")
    save_sentence_files(folder)
    return folder


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "socketpair"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def cache(model: Path, tmp_path: Path) -> Path:
    """The layout of the HuggingFace cache: snapshots of links into blobs, a ref per branch."""
    for name in ("org--tiny", "sentence-transformers--tiny"):
        root = tmp_path / "cache" / f"models--{name}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        (root / "blobs").mkdir()
        for i, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
            blob = root / "blobs" / f"{i:040x}"
            blob.write_bytes(file.read_bytes())
            link = root / "snapshots" / COMMIT / file.relative_to(model)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return tmp_path / "cache"


@pytest.mark.usefixtures("no_sockets")
def test_a_local_path_never_opens_a_socket(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(model.parent)
    for path in (model, str(model), "model", "./model"):
        with Engine.from_pretrained(path) as engine:
            assert engine.encode("the cat").shape == (HIDDEN_SIZE,)


@pytest.mark.usefixtures("no_sockets")
def test_a_local_path_does_not_need_the_hub_library(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert find_model(model) == model
    with pytest.raises(MissingDependencyError, match=r"'minibert-engine\[hub\]'"):
        find_model("org/tiny")


def test_the_home_folder_is_expanded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert find_model("~/model") == model


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_name_is_found_in_the_cache_without_a_network(
    model: Path, cache: Path, name: str, revision: str | None
) -> None:
    with (
        Engine.from_pretrained(
            name, cache_folder=cache, local_files_only=True, revision=revision
        ) as cached,
        Engine.from_pretrained(model) as local,
    ):
        assert cached.folder.name == COMMIT
        assert np.array_equal(cached.encode("the cat sat"), local.encode("the cat sat"))


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("name", ["bert-base-uncased", "BERT-base-uncased"])
def test_old_models_have_no_organisation(cache: Path, name: str) -> None:
    (cache / "models--org--tiny").rename(cache / f"models--{name}")
    found = find_model(name, cache_folder=cache, local_files_only=True)
    assert found.parts[-3:] == (f"models--{name}", "snapshots", COMMIT)


def test_the_names_without_an_organisation_are_those_of_sentence_transformers() -> None:
    misc = pytest.importorskip("sentence_transformers.util.misc")
    theirs = getattr(misc, "ORIGINAL_TRANSFORMER_MODELS", None)
    if theirs is None:
        pytest.skip("this version keeps the list elsewhere")
    assert set(theirs) == hub._WITHOUT_ORGANISATION


@pytest.mark.usefixtures("no_sockets")
def test_a_folder_wins_over_a_name_in_the_cache(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "tiny").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    found = find_model("org/tiny", cache_folder=cache, local_files_only=True)
    assert found == Path("org/tiny")


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("org/other", {}, ["'org/other'", "cache", "local_files_only"]),
        ("other", {}, ["'sentence-transformers/other'", "local_files_only"]),
        ("org/tiny", {"revision": "v2"}, ["'org/tiny'", "'v2'"]),
        ("./nowhere", {}, ["'./nowhere'", "must exist"]),
        ("/nowhere/at/all", {}, ["'/nowhere/at/all'", "must exist"]),
        ("~no_such_user/model", {}, ["'~no_such_user/model'", "must exist"]),
        ("a/b/c", {}, ["'a/b/c'", "must exist"]),
        ("..\\model", {}, ["must exist"]),
        ("", {}, ["''", "must exist"]),
        ("org/", {}, ["'org/'"]),
        ("org/ti ny", {}, ["'org/ti ny'", "neither"]),
        ("org/t\0y", {}, ["'org/t\\x00y'"]),
        ("x" * 5000, {}, ["xxx"]),
    ],
)
def test_what_cannot_be_found_is_named(
    cache: Path, name: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(name, cache_folder=cache, local_files_only=True, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_file_is_no_folder(model: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="must be a model folder, it is a file"):
        find_model(model / "config.json")


def test_a_folder_without_read_permission_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(ModelNotFoundError, match=f"{model} must be a folder that you may read"):
        find_model(model)


@pytest.mark.parametrize("path", [None, 3, b"model", ["model"]])
def test_a_path_is_a_text_or_a_path(path: Any) -> None:
    with pytest.raises(ModelNotFoundError, match=r"path_or_name must be a str or a path, got"):
        find_model(path)


def test_a_hub_that_cannot_be_reached_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*arguments: Any, **keywords: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelNotFoundError, match="hub cannot be reached"):
        find_model("org/other", cache_folder=tmp_path)


@pytest.mark.parametrize("error", [OSError("disk full\nmore"), ValueError(""), PermissionError(13)])
def test_other_failures_of_the_hub_keep_their_reason(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fail(*arguments: Any, **keywords: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=r"'org/other' could not be fetched: .") as caught:
        find_model("org/other")
    assert caught.value.__cause__ is error


def test_only_what_the_engine_reads_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json",
        "modules.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "vocab.txt",
        "tokenizer.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "pytorch_model.bin",
        "tf_model.h5",
        "onnx/model.onnx",
        "onnx/config.json",
        "openvino/openvino_model.xml",
        "train_script.py",
        "README.md",
    ]
    seen: dict[str, Any] = {}

    def download(name: str, **keywords: Any) -> str:
        seen.update(keywords, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("org/other", revision="v1", token="secret", cache_folder=tmp_path) == tmp_path
    assert (seen["name"], seen["revision"], seen["token"]) == ("org/other", "v1", "secret")
    fetched = filter_repo_objects(
        files, allow_patterns=seen["allow_patterns"], ignore_patterns=seen["ignore_patterns"]
    )
    assert list(fetched) == files[:10]
