"""The benchmark harness, end to end on a tiny model, and its parts. No clock is ever asserted."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import ceilings, contenders, markdown, pictures, record, report
from benchmarks.contenders import Contender, all_contenders, choose
from benchmarks.crew import Settings
from benchmarks.driver import Worker, WorkerProblem
from benchmarks.environments import (
    EnvironmentProblem,
    Environments,
    Graphs,
    installed_bytes,
    run,
    tidy,
)
from benchmarks.harness import SHARES, Run
from benchmarks.models import Shape, shape_of, token_counter, write_bert_base
from benchmarks.rounds import Meter
from minibert.cli import machine
from tests.conftest import TinyModel

SETTINGS = Settings(
    rounds=1,
    minutes=60,
    threads=2,
    most_texts=8,
    most_calls=1,
    most_singles=4,
    scaling_counts=(4, 8),
    settle_s=0.0,
)


class CurrentEnvironments(Environments):
    """This interpreter for minibert; no other environment can be had."""

    def python(self, name: str) -> Path:
        if name != "minibert":
            raise EnvironmentProblem(f"{name} is not installed here")
        return Path(sys.executable)

    def installed_bytes(self, name: str) -> int:
        return 1_000_000


def tiny_contenders() -> tuple[Contender, ...]:
    """minibert on NumPy and on its kernels, one that does not load and one that is not there."""
    known = {contender.key: contender for contender in all_contenders(["AVX2"])}
    broken = Contender(
        "broken", "broken", "minibert", "with_minibert", "int8", {"device": "cpu", "dtype": "int3"}
    )
    keys = ("ort-float32", "minibert-numpy", "minibert-float32", "minibert-high")
    return (*(known[key] for key in keys), broken)


def make_run(model: Path, folder: Path, lines: list[str], **identity: str) -> Run:
    return Run(
        tiny_contenders(),
        model,
        CurrentEnvironments(folder / "peers", lines.append),
        SETTINGS,
        baseline="minibert-numpy",
        state=folder / "state.json",
        identity=identity,
        say=lines.append,
        ceiling_now={"float32": 1e12}.get,
    )


@pytest.fixture(scope="module")
def results(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run, as it is read back from its file."""
    folder = tmp_path_factory.mktemp("run")
    harness = make_run(tiny("bert"), folder, [], commit="a")
    found_ceilings = {"fma": {"per_s": 1e10, "dtype": "float32", "feature": "AVX2"}}
    stages = harness.run()
    options = {"threads": 2, "rounds": 1}
    path = record.save(
        record.assemble(harness, stages, found_ceilings, options, record.commit()), folder
    )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found["state"] = str(folder / "state.json")
    found["folder"] = str(folder)
    return found


# ---- end to end -------------------------------------------------------------------------------
def test_every_contender_is_measured_or_named_with_its_reason(results: dict[str, Any]) -> None:
    for key, entry in results["contenders"].items():
        assert (key in results["mixed"]["contenders"]) == (entry["problem"] is None), key
    assert results["contenders"]["minibert-numpy"]["problem"] is None
    assert results["contenders"]["ort-float32"]["problem"] == "convert is not installed here"
    assert "int3" in results["contenders"]["broken"]["problem"]
    assert "the same as highest" in results["contenders"]["minibert-high"]["problem"]


def test_every_stage_is_in_the_results(results: dict[str, Any]) -> None:
    for stage in SHARES:
        assert "skipped" not in results[stage], stage
    assert results["correctness"]["minibert-numpy"]["cosine_min"] == pytest.approx(1)
    mixed = results["mixed"]["contenders"]["minibert-numpy"]
    assert mixed["ratio"]["median"] == 1
    assert mixed["per_s"]["low"] > 0
    single = results["single"]["contenders"]["minibert-numpy"]
    assert single["median_ms"] <= single["p90_ms"] <= single["p99_ms"]
    footprint = results["footprint"]["contenders"]["minibert-numpy"]
    assert footprint["about"]["versions"]["minibert-engine"]
    assert set(results["texts"]["contenders"]["minibert-numpy"]) == {"4", "8"}
    assert results["workloads"]["request-32"]["texts"] == 32
    shares = results["floors"]["minibert-numpy"]
    assert 0 < shares["mixed"]
    assert shares["mixed then"] == pytest.approx(shares["mixed"] / 100)  # 1e10 and 1e12 a second


def test_results_name_no_folder_of_the_machine(results: dict[str, Any]) -> None:
    kept = {key: value for key, value in results.items() if key not in ("state", "folder")}
    text = json.dumps(kept)
    assert str(Path.cwd()) not in text
    assert results["folder"] not in text


def test_the_report_shows_all_of_it(results: dict[str, Any]) -> None:
    page = report.full(results)
    assert "| **minibert on NumPy, float32** |" in page
    assert "Not measured: ONNX Runtime, float32: convert is not installed here" in page
    for title in ("Requests", "Single texts", "Fidelity", "Workloads", "Versions"):
        assert f"### {title}\n" in page
    assert report.headline(results) in page
    shares = results["floors"]["minibert-numpy"]
    assert f" {100 * shares['mixed']:.0f} % ({100 * shares['mixed then']:.0f} %) |" in page


def test_a_short_run_puts_no_table_on_the_first_page(results: dict[str, Any]) -> None:
    assert report.caution(results) in report.full(results)
    assert report.summary(results).startswith("**No ratio of this run is to be quoted.**")
    assert "| engine |" not in report.summary(results)
    enough = copy.deepcopy(results)
    for entry in enough["mixed"]["contenders"].values():
        entry["rounds"] = 5
    for name in ("mixed", "long"):
        enough["workloads"][name]["texts"] = 256
    assert report.caution(enough) == ""
    assert report.summary(enough) == report.headline(enough)
    enough["workloads"]["long"]["texts"] = 255  # that says nothing of the other columns
    assert report.caution(enough).startswith("**The ratios of long texts are not to be quoted**")
    assert "there were 255" in report.caution(enough)
    assert report.summary(enough) == report.headline(enough)
    enough["workloads"]["mixed"]["texts"] = 255
    assert "255 mixed and 255 long texts" in report.caution(enough)
    assert "| engine |" not in report.summary(enough)


def test_a_wrong_contender_is_shown_as_wrong(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    changed["correctness"]["broken"] = {"right": False, "why": "mean cosine 0.5"}
    assert "wrong: mean cosine 0.5" in report.fidelity_table(changed)


def test_skipped_stages_and_disturbed_figures_are_said(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    changed["texts"] = {"skipped": "the run's time was used up"}
    changed["mixed"]["contenders"]["minibert-numpy"]["disturbed"] = True
    page = report.full(changed)
    assert "Skipped: texts, because the run's time was used up." in page
    assert "1.00†" in page
    assert "† Other processes" in page


def test_pictures_are_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = pictures.draw(results, tmp_path / "result")
    assert drawn[0].name == "result-throughput.svg"
    assert all(path.read_text(encoding="utf-8").startswith("<?xml") for path in drawn)
    assert [path.read_bytes() for path in drawn] == [
        path.read_bytes() for path in pictures.draw(results, tmp_path / "result")
    ]


def test_an_interrupted_run_continues(results: dict[str, Any], tiny: TinyModel) -> None:
    state = Path(results["state"])
    saved = json.loads(state.read_text(encoding="utf-8"))
    last = list(SHARES)[-2:]
    for stage in last:  # as if it had ended before these
        del saved["stages"][stage]
    state.write_text(json.dumps(saved), encoding="utf-8")
    lines: list[str] = []
    again = make_run(tiny("bert"), state.parent, lines, commit="a")
    assert list(again.stages) == list(SHARES)[:-2]
    stages = again.run()
    assert list(stages) == list(SHARES)
    assert stages["mixed"] == results["mixed"]
    for stage in last:
        assert set(stages[stage]["contenders"]) == {"minibert-numpy", "minibert-float32"} - set(
            again.problems
        )
    assert lines[0] == f"continuing after {', '.join(list(SHARES)[:-2])}"
    other = make_run(tiny("bert"), Path(results["state"]).parent, [], commit="b")
    assert other.stages == {}
    again.close()
    other.close()


def test_a_run_without_its_baseline_is_refused(tiny: TinyModel, tmp_path: Path) -> None:
    harness = make_run(tiny("bert"), tmp_path, [])
    harness.baseline = "ort-float32"
    with pytest.raises(WorkerProblem, match="baseline ort-float32 cannot run: convert is not"):
        harness.run()


# ---- workers ----------------------------------------------------------------------------------
def test_a_worker_that_dies_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerProblem, match="ModuleNotFoundError: No module named 'with_nothing'"):
        Worker(
            Path(sys.executable), "with_nothing", {}, threads=1, log=tmp_path / "worker.log"
        ).close()


def test_a_worker_reports_a_bad_request_and_goes_on(tiny: TinyModel, tmp_path: Path) -> None:
    load = {"model": str(tiny("bert")), "device": "numpy", "dtype": "float32"}
    log = tmp_path / "worker.log"
    with Worker(Path(sys.executable), "with_minibert", load, threads=1, log=log) as worker:
        with pytest.raises(WorkerProblem, match="FileNotFoundError"):
            worker.ask({"do": "single", "texts": "missing.json", "limit_s": 0, "most": 1})
        assert worker.ask({"do": "about"})["versions"]
        foreign = Meter(worker.pid).foreign()
        assert foreign is None or foreign >= 0


# ---- tables -----------------------------------------------------------------------------------
def test_only_what_is_between_the_markers_is_rewritten() -> None:
    text = "# Title\n<!-- benchmarks:start -->\nold\n<!-- benchmarks:end -->\nlast\n"
    done = markdown.rewrite(text, "new\n")
    assert done == "# Title\n<!-- benchmarks:start -->\nnew\n<!-- benchmarks:end -->\nlast\n"
    assert markdown.rewrite(done, "new") == done


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- benchmarks:end --><!-- benchmarks:start -->",
        "<!-- benchmarks:start --><!-- benchmarks:start --><!-- benchmarks:end -->",
    ],
)
def test_a_page_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must have one"):
        markdown.rewrite(text, "body")


# ---- the rest ---------------------------------------------------------------------------------
def test_contenders_are_chosen_by_key() -> None:
    every = all_contenders(["AVX2", "AMX", "AVX-512 VNNI"])
    assert len({contender.key for contender in every}) == len(every)
    assert all(contender.unsuitable is None for contender in every)
    assert {contender.dtype for contender in every} == set(contenders.COSINE_MEAN)
    assert [c.key for c in choose(every, ["ov-int8", "st-float32"])] == ["st-float32", "ov-int8"]
    assert choose(every, None) == every
    with pytest.raises(ValueError, match="got 'nobody'"):
        choose(every, ["nobody"])


def test_operations_of_a_text() -> None:
    per_token = ceilings.operations_per_text(1, hidden=384, layers=6, intermediate=1536)
    assert per_token == 24 * 384**2 * 6 + 4 * 384 * 6
    assert ceilings.ceiling({}, "float32") is None
    found = {"fma": {"per_s": 5, "dtype": "float32"}, "best": {"per_s": 7, "dtype": "float32"}}
    assert ceilings.ceiling(found, "bfloat16") == ("best", 7)


def test_the_higher_of_two_measured_ceilings_counts() -> None:
    def of(**rates: float) -> dict[str, dict[str, float]]:
        return {name: {"per_s": rate} for name, rate in rates.items()}

    assert ceilings.highest(of(a=1.0, b=5.0), of(a=2.0, b=4.0)) == of(a=2.0, b=5.0)
    assert ceilings.highest(of(a=1.0), {}) == of(a=1.0)


def test_ceilings_are_measured_for_what_the_processor_has(tmp_path: Path) -> None:
    found = ceilings.measure([], threads=1, scratch=tmp_path, each_s=0.001)
    assert set(found) <= {"gemm_numpy"}
    assert all(entry["per_s"] > 0 for entry in found.values())


def test_a_ceiling_can_be_asked_for_again_and_again(tmp_path: Path) -> None:
    features = machine.cpu_features() or []
    found = ceilings.measure(features, threads=1, scratch=tmp_path, each_s=0.001)
    moments = ceilings.Ceilings(found, threads=1, scratch=tmp_path, moment_s=0.001)
    loops = {entry["dtype"] for name, entry in found.items() if name in ceilings.LOOPS}
    for dtype in ("float32", "int8"):
        assert (moments.now(dtype) is not None) == (dtype in loops)
    assert all(moments.now(dtype) > 0 for dtype in loops)  # type: ignore[operator]
    assert moments.now("float64") is None


def test_reasons_and_sizes_name_no_folder(tmp_path: Path) -> None:
    assert tidy(f"no {Path(record.__file__).parents[1]}/x\n  there") == "no ./x there"
    packages = tmp_path / "lib" / "python3" / "site-packages"
    for name, size in {"a/m.py": 5, "a/__pycache__/m.pyc": 7, "pip/p.py": 9, "b.so": 11}.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_bytes(b"x" * size)
    assert installed_bytes(tmp_path) == 16


def test_a_failing_command_ends_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="the step failed: ERROR: no such thing"):
        program = "import sys; sys.exit('ERROR: no such thing\\nmore')"
        run([sys.executable, "-c", program], "the step")
    environments = CurrentEnvironments(tmp_path, lambda line: None)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    graphs = Graphs(environments, model, lambda: ["text"])
    for _ in range(2):
        with pytest.raises(EnvironmentProblem, match="convert is not installed here"):
            graphs.path("openvino-int8")
    assert not list((tmp_path / "graphs").rglob("model.xml"))


def test_the_base_shape_is_written_from_another_model(tiny: TinyModel, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for file in tiny("bert").glob("*.json"):
        (source / file.name).write_bytes(file.read_bytes())
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    write_bert_base(tmp_path / "bert-base", source, num_hidden_layers=1)
    assert shape_of(tmp_path / "bert-base") == Shape(768, 1, 3072, 12, 70)
    assert token_counter(tmp_path / "bert-base")(["cat", ""]) == [3, 2]
    assert (tmp_path / "bert-base" / "model.safetensors").stat().st_size > 4 * 7 * 768 * 768


def test_pages_are_rewritten_for_their_model_and_instructions(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CHECKOUT", tmp_path)
    pages = [tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"]
    pages[1].parent.mkdir()
    for page in pages:
        page.write_text("<!-- benchmarks-avx-512:start -->\n<!-- benchmarks-avx-512:end -->\n")
    minilm = {**results["model"], "name": "all-MiniLM-L6-v2"}
    wide = {**results["device"], "features": ["SSE4.2", "AVX2", "AVX-512"]}
    for other in ({"model": minilm}, {"device": wide}):  # without markers of their own
        features = {**results["device"], "features": ["AVX2"]}
        command.rewrite_pages({**results, "device": features, **other})
        assert all(page.read_text().count("\n") == 2 for page in pages)
    named = {**results, "model": minilm, "device": wide}
    path = record.save(named, tmp_path / "recorded")
    assert command.main(["report", str(path)]) == 0
    assert "No ratio of this run is to be quoted" in pages[0].read_text()
    assert "| **minibert on NumPy, float32** |" in pages[1].read_text()
    assert "### Fidelity" in pages[1].read_text()
    assert "### Fidelity" not in pages[0].read_text()
    assert command.recorded(path.parent) == [path]


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--contenders", "nobody"]) == 1
    assert "contenders must be among st-float32" in capsys.readouterr().err
