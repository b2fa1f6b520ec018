"""The comparison of compressed models, end to end on a tiny model. No clock is ever asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compression
from benchmarks.compression_texts import wordnet
from minibert.compress.quantize import QuantizeOptions, quantize_model


def quickly(source: Path, folder: Path) -> object:
    return quantize_model(source, folder, options=QuantizeOptions(min_cosine=None))


def test_a_comparison_is_made_measured_drawn_and_published(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    document = tmp_path / "page.md"
    markers = [f"<!-- compression:{end} -->" for end in ("start", "end")]
    document.write_text("\n".join(("before", markers[0], "old", markers[1], "after")) + "\n")
    monkeypatch.setattr(compression, "DOCUMENT", document)
    monkeypatch.setattr(compression, "CHECKOUT", tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(
        compression, "recipes", lambda *_: {"quantize --no-gate": ("original", quickly)}
    )
    original = tiny("bert")
    compression.main(
        [str(original), "--work", str(tmp_path / "work"), "--rounds", "1", "--publish"]
    )
    (results,) = (tmp_path / "benchmarks" / "results").glob("*-compression.json")
    first, second = json.loads(results.read_text())["models"]
    assert (first["name"], first["spearman"], first["speedup"]) == ("original", 1.0, 1.0)
    assert second["name"] == "quantize --no-gate"
    files = original / "model.safetensors", tmp_path / "work" / "quantize-no-gate"
    assert first["bytes"] == files[0].stat().st_size
    assert second["bytes"] == (files[1] / "model.safetensors").stat().st_size
    assert 0.9 < second["mean_cosine"] < 1.0
    assert second["shapes"] == [[4, 100]] * 3
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"| `quantize --no-gate` | {second['bytes'] / first['bytes']:.3f}x" in text
    (drawn,) = results.parent.glob("*.svg")
    assert drawn.name in text
    assert "<svg" in drawn.read_text()


def test_every_pruned_variant_is_also_quantized_from_itself() -> None:
    found = compression.recipes((1.5,), 3)
    assert found["prune --speedup 1.5, quantize --no-gate"][0] == "prune --speedup 1.5"
    assert list(found)[-1] == "distil --layers 3"


def test_wordnet_gives_examples_and_definitions_and_leaves_out_what_may_offend(
    tmp_path: Path,
) -> None:
    lines = {
        "noun": [
            "  1 This line is the licence. | no gloss",
            '00001740 03 n 01 entity 0 001 ~ 1 n 0 | that which exists in itself; "it is a thing"',
            '00002 03 n 01 x 0 000 | a vulgar word for something; "he said a vulgar thing"',
        ],
        "verb": ['00003 03 v 01 y 0 000 | move at a walk; "she walked home slowly"; "we walk"'],
        "adj": ["00004 03 a 01 z 0 000 | of or like a fine morning"],
        "adv": ["00005 03 r 01 w 0 000 | in a quiet way"],
    }
    for part, content in lines.items():
        (tmp_path / f"data.{part}").write_text("\n".join(content) + "\n", encoding="latin-1")
    texts = wordnet(tmp_path, 3)
    joined = " ".join(texts)
    assert "vulgar" not in joined and "licence" not in joined
    possible = {"it is a thing", "she walked home slowly"}
    for text in texts:
        for sentence in text.split(". "):
            plain = sentence.rstrip(".").lower()
            assert plain in possible | {
                "that which exists in itself",
                "move at a walk",
                "of or like a fine morning",
                "in a quiet way",
            }
    assert wordnet(tmp_path, 3) == texts
