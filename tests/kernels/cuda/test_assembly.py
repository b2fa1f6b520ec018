"""Every kernel compiles by NVRTC and is assembled for every architecture, without a device."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from minibert.errors import DeviceError
from minibert.kernels.cuda import loader, nvrtc
from minibert.kernels.cuda.catalogue import ARCHITECTURES, catalogue, target_of
from minibert.kernels.cuda.launch import Launch


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_kernels_assemble_without_spills(capability: int) -> None:
    by_source: dict[str, list[Launch]] = defaultdict(list)
    for made in catalogue(target_of(capability)):
        by_source[made.source].append(made)

    def assemble(source: str) -> nvrtc.Cubin:
        return nvrtc.compile_cubin(
            loader.read_source(source),
            name=source,
            arch=f"sm_{capability}",
            name_expressions=[made.kernel for made in by_source[source]],
        )

    with ThreadPoolExecutor(2) as pool:
        cubins = dict(zip(by_source, pool.map(assemble, by_source), strict=True))
    for source, launches in by_source.items():
        cubin = cubins[source]
        assert "warning" not in cubin.log, cubin.log
        for made in launches:
            resources = cubin.resources[cubin.names[made.kernel]]
            assert resources.spill_store_bytes == resources.spill_load_bytes == 0, made.kernel
            assert resources.registers * made.block_size <= 65536, made.kernel
            smem_bytes = resources.smem_bytes + made.smem_bytes
            assert smem_bytes <= target_of(capability).smem_bytes, made.kernel


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_conformance_kernels_assemble(capability: int) -> None:
    floats = ["half"] + ["bfloat16"] * (capability >= 80)
    names = [f"{kind}_conformance_kernel<{t}>" for kind in ("mma", "convert") for t in floats]
    names += ["mma_conformance_kernel<int8>", "copy_conformance_kernel", "warp_conformance_kernel"]
    names += [f"ldmatrix_conformance_kernel<{t}>" for t in ("false", "true")]
    if capability >= 80:
        names += [
            f"mma_sparse_conformance_kernel<{t}, {selector}>" for t in floats for selector in (0, 1)
        ]
    text = loader.read_source("conformance.cu")
    arch = f"sm_{capability}"
    cubin = nvrtc.compile_cubin(text, name="conformance.cu", arch=arch, name_expressions=names)
    assert len(cubin.resources) == len(names)


def test_ptxas_refuses_what_an_architecture_lacks() -> None:
    wrong = 'extern "C" __global__ void k() { asm volatile("cp.async.commit_group;"); }'
    with pytest.raises(DeviceError, match="sm_80"):
        nvrtc.compile_cubin(wrong, name="wrong.cu", arch="sm_75")
