from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minibert.errors import DeviceError
from minibert.kernels.cuda import loader
from minibert.kernels.cuda.device import choose_code

KERNEL = ("normalize.cu", "normalize_kernel<float>")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MINIBERT_CACHE_DIR", str(tmp_path))
    loader.clear_memory_cache()
    yield
    loader.clear_memory_cache()


def test_headers_are_joined_once_with_their_lines() -> None:
    text = loader.read_source("layer_norm.cu")
    assert "#include" not in text
    assert text.count('#line 1 "types.cuh"') == 1
    assert text.count("struct half {") == 1
    lines = text.splitlines()
    after = lines.index('#line 1 "layer_norm.cu"')
    include = next(
        i
        for i, line in enumerate(lines)
        if line.startswith("#line") and '"layer_norm.cu"' in line and i > after
    )
    number = int(lines[include].split()[1])
    original = (Path(loader.__file__).parent / "layer_norm.cu").read_text().splitlines()
    assert lines[include + 1] == (
        "" if "#include" in original[number - 1] else original[number - 1]
    )


def test_compiled_code_is_kept_on_disk_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = loader.load_code(*KERNEL, arch="sm_80")
    assert first.path is not None and first.path.read_bytes() == first.image
    assert first.resources.registers > 0
    loader.clear_memory_cache()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the cache must be used")

    monkeypatch.setattr(loader.nvrtc, "compile_cubin", refuse)
    assert loader.load_code(*KERNEL, arch="sm_80") == first


def test_a_damaged_cache_file_is_compiled_again() -> None:
    first = loader.load_code(*KERNEL, arch="sm_80")
    assert first.path is not None
    first.path.write_bytes(first.image[:-1])
    loader.clear_memory_cache()
    assert loader.load_code(*KERNEL, arch="sm_80").image == first.image


def test_an_unwritable_cache_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIBERT_CACHE_DIR", str(tmp_path / "file"))
    code = loader.load_code(*KERNEL, arch="sm_80")
    assert code.path is None
    kept = code.on_disk()
    assert kept.path is not None and kept.path.read_bytes() == code.image


def test_the_key_covers_architecture_product_and_instance() -> None:
    codes = [
        loader.load_code(*KERNEL, arch="sm_80"),
        loader.load_code(*KERNEL, arch="sm_90"),
        loader.load_code(*KERNEL, arch="sm_80", product="ptx"),
        loader.load_code(KERNEL[0], "normalize_kernel<half>", arch="sm_80"),
    ]
    assert len({code.path for code in codes}) == 4
    assert codes[2].image.lstrip().startswith(b"//")


def test_errors_show_the_numbered_source() -> None:
    with pytest.raises(DeviceError, match=r"normalize.cu does not compile") as caught:
        loader.load_code(KERNEL[0], KERNEL[1], arch="sm_80", options=("-DkBlockSize=",))
    assert "constexpr int kBlockSize = 128;" in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (80, ("cubin", "sm_80")),
        (86, ("cubin", "sm_86")),
        (87, ("cubin", "sm_86")),
        (90, ("cubin", "sm_90")),
        (101, ("cubin", "sm_100")),
        (130, ("ptx", "sm_120")),
    ],
)
def test_code_is_chosen_for_the_device(capability: int, expected: tuple[str, str]) -> None:
    assert choose_code(capability, (75, 80, 86, 90, 100, 120)) == expected


def test_a_device_older_than_the_compiler_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"support compute capability 7.0, it starts at 7.5"):
        choose_code(70, (75, 80))
