from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert.config import EncoderConfig
from minibert.errors import WeightsError
from minibert.weights.checkpoint import EncoderWeights, load_encoder
from tests.checkpoints import FAMILIES, HIDDEN_SIZE, edit_json, edit_tensors, save_tiny

PREFIXES = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "camembert": "roberta.",
    "distilbert": "distilbert.",
    "electra": "electra.",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_tiny(root / family, family) for family in FAMILIES}


@pytest.fixture
def bert(models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models["bert"], tmp_path / "bert"))


def load(folder: Path) -> EncoderWeights:
    return load_encoder(folder, EncoderConfig.from_file(folder / "config.json"))


def flat(weights: EncoderWeights) -> list[bytes]:
    arrays = [weights.word, weights.position, weights.embedding_norm.weight]
    for layer in weights.layers:
        arrays += [layer.qkv.weight, layer.output.weight, layer.output_norm.weight]
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_that_of_transformers(models: dict[str, Path], family: str) -> None:
    from transformers import AutoModel

    theirs = {
        name: tensor.numpy()
        for name, tensor in AutoModel.from_pretrained(models[family]).state_dict().items()
    }
    ours = load(models[family])
    assert np.array_equal(ours.word, theirs["embeddings.word_embeddings.weight"])
    assert np.array_equal(ours.position, theirs["embeddings.position_embeddings.weight"])
    assert (ours.token_type is None) == (family == "distilbert")
    if ours.token_type is not None:
        assert np.array_equal(ours.token_type, theirs["embeddings.token_type_embeddings.weight"])
    assert (ours.projection is not None) == (family == "electra")
    if ours.projection is not None:
        assert np.array_equal(ours.projection.weight, theirs["embeddings_project.weight"])
    assert len(ours.layers) == 2
    for i, layer in enumerate(ours.layers):
        if family == "distilbert":
            stem = f"transformer.layer.{i}."
            parts = [f"{stem}attention.{part}_lin" for part in "qkv"]
            names = ("attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2")
            names += ("output_layer_norm",)
        else:
            stem = f"encoder.layer.{i}."
            parts = [f"{stem}attention.self.{part}" for part in ("query", "key", "value")]
            names = ("attention.output.dense", "attention.output.LayerNorm")
            names += ("intermediate.dense", "output.dense", "output.LayerNorm")
        assert layer.num_heads == 4
        for kind in ("weight", "bias"):
            fused = np.concatenate([theirs[f"{part}.{kind}"] for part in parts])
            assert np.array_equal(getattr(layer.qkv, kind), fused)
            for field, name in zip(
                (
                    layer.attention_output,
                    layer.attention_norm,
                    layer.intermediate,
                    layer.output,
                    layer.output_norm,
                ),
                names,
                strict=True,
            ):
                assert np.array_equal(getattr(field, kind), theirs[f"{stem}{name}.{kind}"])
    used = {name for name in theirs if not name.startswith("pooler.")}
    assert ours.num_parameters == sum(theirs[name].size for name in used)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_before_every_name_changes_nothing(
    models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    folder = Path(shutil.copytree(models[family], tmp_path / "model"))
    plain = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    named = {PREFIXES[family] + name: array for name, array in plain.items()}
    save_file(named, folder / "model.safetensors")
    assert flat(load(folder)) == flat(load(models[family]))


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", "BertForMaskedLM"),
        ("bert", "BertForPreTraining"),
        ("bert", "BertForSequenceClassification"),
        ("bert", "BertForTokenClassification"),
        ("bert", "BertForQuestionAnswering"),
        ("roberta", "RobertaForMaskedLM"),
        ("roberta", "RobertaForSequenceClassification"),
        ("xlm-roberta", "XLMRobertaForMaskedLM"),
        ("camembert", "CamembertForTokenClassification"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("distilbert", "DistilBertForSequenceClassification"),
        ("distilbert", "DistilBertForQuestionAnswering"),
        ("electra", "ElectraForPreTraining"),
        ("electra", "ElectraForMaskedLM"),
        ("electra", "ElectraForSequenceClassification"),
        ("electra", "ElectraForMultipleChoice"),
    ],
)
def test_heads_of_the_task_classes_are_listed_as_unused(
    models: dict[str, Path], tmp_path: Path, family: str, head: str
) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(models[family])
    getattr(transformers, head)(config).save_pretrained(tmp_path)
    weights = load(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert weights.unused
    assert not any(".layer." in name for name in weights.unused)
    read = weights.num_parameters
    assert read + sum(stored[name].size for name in weights.unused) == sum(
        array.size for array in stored.values()
    )


def test_old_names_of_layer_norm_are_understood(models: dict[str, Path], bert: Path) -> None:
    tensors = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, bert / "model.safetensors")
    assert flat(load(bert)) == flat(load(models["bert"]))


def test_float16_on_disk_is_widened_exactly(bert: Path) -> None:
    halves = {
        name: array.astype(np.float16)
        for name, array in load_file(bert / "model.safetensors").items()
    }
    (bert / "model.safetensors").unlink()
    save_file(halves, bert / "model.safetensors")
    weights = load(bert)
    assert weights.dtypes == ("F16",)
    half = halves["embeddings.word_embeddings.weight"]
    assert np.array_equal(weights.word, half.astype(np.float32))


def test_shards_written_by_transformers_are_read(models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(models["bert"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert flat(load(tmp_path)) == flat(load(models["bert"]))


def test_buffers_of_older_versions_are_unused(bert: Path) -> None:
    edit_tensors(bert, embeddings__position_ids=np.arange(64)[None])
    assert "embeddings.position_ids" in load(bert).unused


def test_a_layer_may_be_narrower_than_the_configuration(bert: Path) -> None:
    tensors = load_file(bert / "model.safetensors")
    stem = "encoder.layer.1."
    changes = {
        f"{stem}attention.self.{part}.{kind}": tensors[f"{stem}attention.self.{part}.{kind}"][8:]
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    changes[f"{stem}attention.output.dense.weight"] = np.ascontiguousarray(
        tensors[f"{stem}attention.output.dense.weight"][:, 8:]
    )
    changes[f"{stem}intermediate.dense.weight"] = tensors[f"{stem}intermediate.dense.weight"][:40]
    changes[f"{stem}intermediate.dense.bias"] = tensors[f"{stem}intermediate.dense.bias"][:40]
    changes[f"{stem}output.dense.weight"] = np.ascontiguousarray(
        tensors[f"{stem}output.dense.weight"][:, :40]
    )
    edit_tensors(bert, **{name.replace(".", "__"): array for name, array in changes.items()})
    edit_json(bert / "config.json", pruned_heads={"1": [0]})
    weights = load(bert)
    assert [layer.num_heads for layer in weights.layers] == [4, 3]
    assert weights.layers[1].intermediate.weight.shape == (40, HIDDEN_SIZE)


QUERY = "encoder.layer.1.attention.self.query.weight"
INNER = "encoder.layer.0.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (QUERY, None, [QUERY, "missing"]),
        ("embeddings.word_embeddings.weight", None, ["embeddings.word_embeddings.weight", "bert."]),
        ("encoder.layer.0.output.LayerNorm.bias", None, ["LayerNorm.bias", "missing"]),
        (QUERY, np.zeros((32, 31), np.float32), [QUERY, "(32, 32)", "(32, 31)"]),
        (QUERY, np.zeros((30, 32), np.float32), [QUERY, "head_dim = 8", "30"]),
        (QUERY, np.zeros((40, 32), np.float32), [QUERY, "32", "40"]),
        (QUERY, np.zeros(32, np.float32), [QUERY, "two-dimensional", "(32,)"]),
        (INNER, np.zeros((49, 32), np.float32), [INNER, "1 to 48", "49"]),
        (INNER, np.zeros((0, 32), np.float32), [INNER, "1 to 48", "0"]),
        (INNER, np.zeros((48, 32), np.int8), [INNER, "F32", "I8"]),
        (INNER, np.zeros((48, 32), np.float64), [INNER, "F32", "F64"]),
        (INNER, np.full((48, 32), np.nan, np.float32), [INNER, "finite", str(48 * 32)]),
        (INNER, np.full((48, 32), -np.inf, np.float16), [INNER, "finite"]),
        ("encoder.layer.2.output.dense.bias", np.zeros(32, np.float32), ["num_hidden_layers = 2"]),
        ("surprise", np.zeros(1, np.float32), ["surprise", "known", "bert"]),
        ("encoder.layer.0.output.dense.weight_q", np.zeros(1, np.int8), ["weight_q", "known"]),
        ("bert.embeddings.word_embeddings.weight", np.zeros((2, 2), np.float32), ["both"]),
        ("encoder.layer.0.output.LayerNorm.gamma", np.zeros(32, np.float32), ["gamma"]),
    ],
)
def test_tensors_are_refused_by_name(
    bert: Path, name: str, array: np.ndarray | None, words: list[str]
) -> None:
    edit_tensors(bert, **{name.replace(".", "__"): array})
    with pytest.raises(WeightsError) as caught:
        load(bert)
    for word in words:
        assert word in str(caught.value)


def test_one_infinite_weight_is_found_and_a_large_one_is_taken(bert: Path) -> None:
    large = np.full((48, 32), 3e38, np.float32)
    edit_tensors(bert, encoder__layer__0__intermediate__dense__weight=large)
    assert np.array_equal(load(bert).layers[0].intermediate.weight, large)
    large[7, 7] = np.inf
    edit_tensors(bert, encoder__layer__0__intermediate__dense__weight=large)
    with pytest.raises(WeightsError, match="got 1 NaN or infinite"):
        load(bert)


def test_heads_that_do_not_match_pruned_heads_are_refused(bert: Path) -> None:
    edit_json(bert / "config.json", pruned_heads={"1": [0]})
    with pytest.raises(WeightsError, match="layer 1 must have 3 heads"):
        load(bert)


def test_a_head_that_is_missing_without_pruned_heads_is_refused(bert: Path) -> None:
    tensors = load_file(bert / "model.safetensors")
    edit_tensors(bert, **{QUERY.replace(".", "__"): tensors[QUERY][:24]})
    with pytest.raises(WeightsError, match=r"self\.query"):
        load(bert)
