"""The program of `make gpu`, end to end at tiny sizes in the emulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import checks, costs, peaks, resources
from benchmarks.gpu.clock import Contender, Rounds, WallClock, race
from benchmarks.gpu.report import Report
from benchmarks.gpu.timings import Bench
from benchmarks.gpu.workloads import BASE, ragged
from minibert.kernels.cuda import device as devices
from minibert.kernels.cuda import loader, nvrtc
from minibert.kernels.cuda.emulated import EmulatedDevice
from tests.kernels.cuda.fake_cupy import FakeCupy


def test_the_driver_runs_every_stage_and_writes_both_files(tmp_path: Path) -> None:
    assert driver.main(["--device", "emulator", "--out", str(tmp_path)]) == 0
    (json_path,) = tmp_path.glob("*.json")
    found: dict[str, Any] = json.loads(json_path.read_text())
    assert found["ok"]
    # Clusters begin with 9.0; CuPy has no way to ask for the other.
    assert set(found["skipped"]) == {
        "cluster barrier",
        "launches with programmatic dependency",
    }
    stages = {"conformance", "kernel tests", "parity", "peaks"}
    assert {check["stage"] for check in found["checks"]} == stages
    timed = {"ceilings", "peaks", "host cost", "linear layers", "attention", "whole models"}
    assert {timing["stage"] for timing in found["timings"]} == timed
    contenders = {t["contender"] for t in found["timings"] if t["stage"] == "linear layers"}
    assert {"minibert float16", "minibert float16, 2:4 sparse", "minibert int8"} <= contenders
    units = {timing["work"] for timing in found["timings"] if timing["stage"] == "peaks"}
    assert units == {
        *(f"mma_peak_kernel<{t}>" for t in ("half", "bfloat16", "int8")),
        *(f"mma_sparse_peak_kernel<{t}>" for t in ("half", "bfloat16")),
        *(f"function_peak_kernel<{f}>" for f in ("kExp2", "kExp2Half2", "kTanh", "kErf")),
        "grid barrier",
        "L2 reads",
    }
    host = {t["work"]: t["contender"] for t in found["timings"] if t["stage"] == "host cost"}
    assert host["one empty kernel"] == "16 arguments"  # the last of three
    assert "graph of 3 empty kernels of 1 blocks" in host
    assert set(found["seconds"]) == stages | timed
    assert all(timing["time_us"] > 0 for timing in found["timings"])
    floors = [t for t in found["timings"] if t["floor_us"] is not None]
    assert floors
    assert all(t["fraction"] == pytest.approx(t["floor_us"] / t["time_us"]) for t in floors)
    table = json_path.with_suffix(".md").read_text()
    assert "emulator of sm_80" in table and "| mma<half> |" in table


def test_the_driver_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    monkeypatch.setattr(devices, "choose_code", lambda *_: ("ptx", "sm_80"))
    monkeypatch.setattr(checks, "kernel_tests", lambda *_: None)  # another process: no stand-in
    assert driver.main(["--device", "cuda", "--tiny", "--out", str(tmp_path)]) == 0
    (json_path,) = tmp_path.glob("*-fake-a100.json")
    found = json.loads(json_path.read_text())
    assert found["environment"]["CuPy"] == "14.2.0"
    assert found["skipped"]["PyTorch"].startswith("sees no GPU")
    timed = {"peaks", "host cost", "linear layers", "attention", "whole models"}
    assert {timing["stage"] for timing in found["timings"]} == timed


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_the_loops_of_the_peaks_assemble(capability: int) -> None:
    names = [f"mma_peak_kernel<{t}>" for t in ("half", "bfloat16", "int8")]
    names += [f"mma_sparse_peak_kernel<{t}>" for t in ("half", "bfloat16")]
    names += [f"function_peak_kernel<{f}>" for f in ("kExp2", "kExp2Half2", "kTanh", "kErf")]
    names += ["grid_barrier_kernel"] + ["cluster_barrier_kernel"] * (capability >= 90)
    cubin = nvrtc.compile_cubin(
        loader.read_source(peaks.SOURCE),
        name="peaks.cu",
        arch=f"sm_{capability}",
        name_expressions=names,
    )
    for name in names:
        found = cubin.resources[cubin.names[name]]
        assert found.spill_store_bytes == found.spill_load_bytes == 0, name


@pytest.mark.parametrize("capability", [75, 80, 90, 100, 120])
def test_the_kernels_of_the_costs_assemble(capability: int) -> None:
    names = [*(f"nothing_{count}_kernel" for count in (1, 8, 16)), "read_kernel"]
    cubin = nvrtc.compile_cubin(
        loader.read_source(costs.SOURCE),
        name="costs.cu",
        arch=f"sm_{capability}",
        name_expressions=names,
    )
    for name in names:
        assert cubin.resources[cubin.names[name]].spill_store_bytes == 0, name


def test_a_wrong_result_of_a_unit_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_CHAINS", 7)
    report = Report({"device": "none"})
    rounds = Rounds(rounds=1, target_us=1.0, warm_ups=1)
    bench = Bench(report, EmulatedDevice(80), WallClock(), rounds, None, "cpu")
    peaks.tensor_cores(bench, peaks.Sizes(0, 2, 1))
    assert report.checks and not any(check.ok for check in report.checks)


def test_a_failed_check_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(report: Report, device: Any) -> None:
        report.check("conformance", "mma", False, "error 50, allowed 0.1")
        raise RuntimeError("out of patience")

    monkeypatch.setattr(checks, "conformance", broken)
    monkeypatch.setenv("OUT", str(tmp_path))
    assert driver.main(["--device", "emulator", "--time-limit", "16"]) == 1
    (json_path,) = tmp_path.glob("*.json")
    found = json.loads(json_path.read_text())
    failed = [check["name"] for check in found["checks"] if not check["ok"]]
    assert {"mma", "runs to its end"} <= set(failed)
    assert "out of time" in found["skipped"].values()
    assert "FAILED conformance: mma" in json_path.with_suffix(".md").read_text()
    assert "out of patience" in capsys.readouterr().err


def test_contenders_take_turns() -> None:
    order: list[str] = []
    report = Report({"device": "none"})
    race(
        report,
        "stage",
        "work",
        {
            name: Contender(lambda name=name: order.append(name), WallClock())  # type: ignore[misc]
            for name in ("a", "b")
        },
        Rounds(rounds=3, target_us=0.0, warm_ups=1),
        floor_us=1e-9,
    )
    assert order == ["a", "a", "b", "b", *"ababab"]
    assert [timing.contender for timing in report.timings] == ["a", "b"]


def test_a_report_without_checks_is_not_a_success() -> None:
    assert not Report({"device": "none"}).ok


def test_work_is_counted_as_the_papers_do() -> None:
    # 24 d^2 per token and layer with f = 4 d, and 4 d s^2 per layer for attention.
    assert BASE.flops_per_token == 12 * 24 * 768**2
    assert BASE.flops([128]) == 128 * BASE.flops_per_token + 12 * 4 * 768 * 128**2
    assert BASE.weight_bytes(2) == 2 * 12 * 12 * 768**2


def test_ragged_lengths_have_the_mean_they_name() -> None:
    seqlens = ragged(4096, 64, 256)
    assert 56 < sum(seqlens) / len(seqlens) < 68
    assert max(seqlens) <= 256 and min(seqlens) >= 3 and seqlens == sorted(seqlens, reverse=True)


def test_the_resource_table_goes_between_its_markers() -> None:
    text = f"a\n{resources.BEGIN}\nold\n{resources.END}\nb\n"
    assert resources.rewrite(text, "new") == f"a\n{resources.BEGIN}\nnew\n{resources.END}\nb\n"
    document = resources.DOCUMENT.read_text(encoding="utf-8")
    assert document.count(resources.BEGIN) == document.count(resources.END) == 1
    assert "| `attention_kernel<half, 32, 64>` |" in document
