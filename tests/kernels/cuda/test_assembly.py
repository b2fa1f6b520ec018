"""Every kernel compiles by NVRTC and is assembled for every architecture, without a device."""

from __future__ import annotations

from collections import defaultdict

import pytest

from minibert.errors import DeviceError
from minibert.kernels.cuda import loader, nvrtc
from minibert.kernels.cuda.catalogue import ARCHITECTURES, catalogue, target_of
from minibert.kernels.cuda.launch import Launch

SOURCES = sorted({made.source for made in catalogue(target_of(80))})


def instances(capability: int, source: str) -> list[Launch]:
    by_source: dict[str, list[Launch]] = defaultdict(list)
    for made in catalogue(target_of(capability)):
        by_source[made.source].append(made)
    return by_source[source]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_kernels_assemble_without_spills(capability: int, source: str) -> None:
    made = instances(capability, source)
    cubin = nvrtc.compile_cubin(
        loader.read_source(source),
        name=source,
        arch=f"sm_{capability}",
        name_expressions=[item.kernel for item in made],
    )
    for item in made:
        resources = cubin.resources[cubin.names[item.kernel]]
        assert resources.spill_store_bytes == resources.spill_load_bytes == 0, item.kernel
        assert resources.registers * item.block_size <= 65536, item.kernel
        static = resources.smem_bytes
        assert static + item.smem_bytes <= target_of(capability).smem_bytes, item.kernel
    assert "warning" not in cubin.log


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_conformance_kernels_assemble(capability: int) -> None:
    floats = ["half"] + ["bfloat16"] * (capability >= 80)
    names = [f"{kind}_conformance_kernel<{t}>" for kind in ("mma", "convert") for t in floats]
    names += ["mma_conformance_kernel<int8>", "copy_conformance_kernel", "warp_conformance_kernel"]
    names += [f"ldmatrix_conformance_kernel<{t}>" for t in ("false", "true")]
    text = loader.read_source("conformance.cu")
    arch = f"sm_{capability}"
    cubin = nvrtc.compile_cubin(text, name="conformance.cu", arch=arch, name_expressions=names)
    assert len(cubin.resources) == len(names)


def test_ptxas_refuses_what_an_architecture_lacks() -> None:
    wrong = 'extern "C" __global__ void k() { asm volatile("cp.async.commit_group;"); }'
    with pytest.raises(DeviceError, match="sm_80"):
        nvrtc.compile_cubin(wrong, name="wrong.cu", arch="sm_75")
