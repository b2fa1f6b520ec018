from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
from click.testing import Result

import minibert
from minibert.cli import doctor, machine
from minibert.kernels.cpu import cores, loader
from minibert.ops import cpu

Run = Callable[..., Result]
H100 = machine.Gpu("NVIDIA H100", 90, 132, 232448)


def findings(run: Run) -> dict[str, dict[str, str]]:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["version"] == minibert.__version__
    return {finding["name"]: finding for finding in report["findings"]}


def test_the_report_fits_in_80_columns(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
    for heading in ("Machine", "Arrays", "CPU kernels", "GPU", "Packages"):
        assert f"\n{heading}\n" in result.output


def test_the_json_names_everything(run: Run) -> None:
    found = findings(run)
    assert {"processor", "cores", "NumPy", "BLAS", "extension", "driver", "CuPy", "NVRTC"} <= set(
        found
    )
    assert found["NumPy"]["status"] == "ok"
    assert all(finding["status"] in ("ok", "warn", "off") for finding in found.values())


def test_whatever_is_a_warning_comes_with_advice(run: Run) -> None:
    assert all(f["advice"] for f in findings(run).values() if f["status"] == "warn")


@pytest.mark.parametrize(("blas_threads", "status"), [(3, "ok"), (8, "warn"), (None, "ok")])
def test_a_quota_is_kept_by_the_kernels_and_may_be_passed_by_blas(
    run: Run, monkeypatch: pytest.MonkeyPatch, blas_threads: int | None, status: str
) -> None:
    monkeypatch.setattr(cores, "affinity_cores", lambda: 8)
    monkeypatch.setattr(cores, "cgroup_quota", lambda: 2.5)
    monkeypatch.setattr(machine, "blas", lambda: machine.Blas("OpenBLAS", None, blas_threads))
    found = findings(run)
    assert (found["cores"]["status"], found["cores"]["advice"]) == ("ok", None)
    assert "a quota of 2.5: the kernels use 3" in found["cores"]["value"]
    threads = found["BLAS threads"]
    assert threads["status"] == status
    assert (threads["advice"] or "").endswith("OPENBLAS_NUM_THREADS=3") is (status == "warn")


def test_a_processor_without_avx2_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_features", lambda: ["SSE4.2"])
    assert findings(run)["features"]["status"] == "warn"


@pytest.mark.parametrize(
    ("features", "status"), [(["AVX2"], "off"), (["AVX2", "AVX-VNNI"], "warn")]
)
def test_a_path_left_out_is_a_warning_where_the_processor_has_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, features: list[str], status: str
) -> None:
    monkeypatch.setattr(cpu, "available", lambda: (True, "path avx2"))
    monkeypatch.setattr(machine, "cpu_features", lambda: features)
    monkeypatch.setattr(loader, "left_out", lambda: {"avx2-vnni": "c++: unknown flag -mavxvnni"})
    found = findings(run)["left out"]
    assert (found["status"], found["value"]) == (status, "avx2-vnni")
    assert "(c++: unknown flag -mavxvnni)" in found["advice"]
    assert ("this processor has avx2-vnni" in found["advice"]) is (status == "warn")


def test_a_forced_core_type_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert findings(run)["BLAS"]["status"] == "warn"


@pytest.mark.parametrize(("built", "status"), [(True, "ok"), (False, "warn")])
def test_the_extension_is_built_or_the_reason_is_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, built: bool, status: str
) -> None:
    monkeypatch.setattr(cpu, "available", lambda: (built, "path none-such"))
    for there, advice in ((True, "no model is loaded on the CPU"), (False, "NumPy does the work")):
        monkeypatch.setattr(cpu, "is_built", lambda there=there: there)
        extension = findings(run)["extension"]
        assert extension["status"] == status
        assert "path none-such" in extension["value"]
        assert built or advice in extension["advice"]


@pytest.mark.parametrize(
    ("version", "extra"), [((13, 1), "cuda13"), ((12, 4), "cuda12"), (None, "cuda12")]
)
def test_a_gpu_without_cupy_gets_the_extra_of_its_driver(
    run: Run, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None, extra: str
) -> None:
    driver = machine.CudaDriver(version, (H100,))
    monkeypatch.setattr(machine, "cuda_driver", lambda: driver)
    monkeypatch.setattr(machine, "nvrtc", lambda: None)
    monkeypatch.setattr(machine, "version_of", lambda *names: None)
    found = findings(run)
    assert found["GPU 0"]["value"] == (
        "NVIDIA H100, compute capability 9.0, 132 multiprocessors, 227 KB of shared memory a block"
    )
    assert found["CuPy"]["status"] == found["NVRTC"]["status"] == "warn"
    assert found["CuPy"]["advice"] == f'pip install "minibert-engine[{extra}]"'


def test_every_gpu_is_told_its_kernels_and_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    old = machine.Gpu("Tesla T4", 75, 40, 65536)
    older = machine.Gpu("Tesla V100", 70, 80, 98304)
    driver = machine.CudaDriver((13, 1), (H100, old, H100, older))
    monkeypatch.setattr(machine, "cuda_driver", lambda: driver)
    sections: dict[str, dict[str, doctor.Finding]] = {}
    for finding in doctor.examine():
        sections.setdefault(finding.section, {})[finding.name] = finding
    modern, turing = sections["Kernels of GPU 0, 2"], sections["Kernels of GPU 1"]
    assert "m16n8k16" in modern["linear float16"].value
    assert "227 KB" in modern["linear float16"].value
    assert "m16n8k8" in turing["linear float16"].value
    assert turing["linear bfloat16"].status == "off"
    assert "needs compute capability 8.0, this is 7.5" in turing["linear bfloat16"].value
    assert sections["GPU"]["GPU 3"].status == "warn"
    assert "must be at least 7.5, got 7.0" in (sections["GPU"]["GPU 3"].advice or "")
    assert "together" not in sections["GPU"]
    assert all(len(line) <= 80 for line in run("doctor").output.splitlines())


def test_gpus_of_one_capability_may_work_together(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = machine.CudaDriver((13, 1), (H100, H100))
    monkeypatch.setattr(machine, "cuda_driver", lambda: driver)
    together = next(finding for finding in doctor.examine() if finding.name == "together")
    assert together.value == "--devices cuda:0,cuda:1 shares the batches"


def test_a_driver_that_fails_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = machine.CudaDriver((12, 4), (), "cuInit failed with CUDA error 100")
    monkeypatch.setattr(machine, "cuda_driver", lambda: driver)
    assert "error 100" in findings(run)["driver"]["value"]


def test_a_container_without_gpu_access_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_driver", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    driver = findings(run)["driver"]
    assert driver["status"] == "warn"
    assert "container" in driver["advice"]


def test_missing_optional_packages_are_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version_of", lambda *names: None)
    found = findings(run)
    assert found["pyarrow"]["status"] == found["huggingface_hub"]["status"] == "off"
    assert "[parquet]" in found["pyarrow"]["advice"]
    assert found["tokenizers"]["status"] == "warn"


def test_an_unknown_blas_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "blas", lambda: None)
    blas = next(finding for finding in doctor.examine() if finding.name == "BLAS")
    assert blas.status == "warn"
