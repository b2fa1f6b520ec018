"""The comparison of compressed models, end to end on a tiny model. No clock is ever asserted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compression
from benchmarks.compression_texts import wordnet


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
    monkeypatch.setattr(compression, "recipes", lambda *_: {"quantize --no-gate": "original"})
    original = tiny("bert")
    work = ["--work", str(tmp_path / "work")]
    compression.main([str(original), *work, "--make-only"])
    assert "old" in document.read_text() and not list((tmp_path / "benchmarks").rglob("*.json"))
    made = json.loads((tmp_path / "work" / "made.json").read_text())
    assert set(made) == {"quantize --no-gate"}
    # Python with NumPy takes some 30 MB by itself; what is measured must be that process's.
    assert 30 < made["quantize --no-gate"]["peak_mb"] < 4000
    assert made["quantize --no-gate"]["cpu_seconds"] > 0
    compression.main([str(original), *work, "--rounds", "1", "--publish"])  # makes nothing anew
    (results,) = (tmp_path / "benchmarks" / "results").glob("*-compression.json")
    published = json.loads(results.read_text())
    assert published["cost_to_make"] == made
    first, second = published["models"]
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
    assert found["prune --speedup 1.5, quantize --no-gate"] == "prune --speedup 1.5"
    assert list(found)[-1] == "distil --layers 3"
    assert not any(name.startswith("distil") for name in compression.recipes((1.5,), 0))


def test_a_command_that_fails_ends_the_comparison(tiny: Any, tmp_path: Path) -> None:
    wanted = {"quantize --bits 5": "original"}
    with pytest.raises(subprocess.CalledProcessError):
        compression.make_variants(tiny("bert"), tmp_path, wanted)
    assert not list(tmp_path.iterdir())


def test_results_go_into_the_section_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("compression", "compression-base")
    text = "".join(f"<!-- {name}:start -->\nold\n<!-- {name}:end -->\n" for name in names)
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(compression, "DOCUMENT", tmp_path / "page.md")
    row = {
        "name": "original",
        "bytes": 10,
        "flop_ratio": 1.0,
        "spearman": 1.0,
        "speedup": 1.0,
        "speedup_low": 1.0,
        "speedup_high": 1.0,
        "mean_cosine": 1.0,
        "min_cosine": 1.0,
        "top10_overlap": 1.0,
    }
    about = {"processor": "P", "cores": 2}
    cost = {"prune": {"seconds": 630.0, "cpu_seconds": 1200.0, "peak_mb": 2100}}
    results = {
        "device": about,
        "models": [row],
        "model": "M",
        "texts": 3,
        "rounds": 1,
        "commit": "c",
        "date": "d",
        "cost_to_make": cost,
    }
    compression.publish(results, tmp_path / "x.svg", "compression-base")
    first, second = (tmp_path / "page.md").read_text().split("<!-- compression-base:start -->")
    assert "old" in first and "old" not in second
    assert "`prune` 10.5 minutes (20.0 of one core, 2.1 GB)" in second


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
