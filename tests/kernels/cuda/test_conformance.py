from __future__ import annotations

import os

import pytest

from minibert.kernels.cuda.conformance import check_conformance
from minibert.kernels.cuda.emulated import EmulatedDevice
from tests.kernels.cuda.conftest import open_device

NAMES = {
    "mma<half>",
    "mma<bfloat16>",
    "mma<int8>",
    *(f"mma_sparse<{t}, {selector}>" for t in ("half", "bfloat16") for selector in (0, 1)),
    "pack2<half>",
    "pack2<bfloat16>",
    "ldmatrix_x4",
    "ldmatrix_x4_trans",
    "copy16",
    "warp_sum",
    "warp_max",
    "exp2_approx",
}


@pytest.mark.parametrize("seed", range(2))
def test_every_wrapper_computes_what_the_isa_says(seed: int) -> None:
    device = open_device(os.environ.get("MINIBERT_TEST_DEVICE", "emulator"))
    findings = list(check_conformance(device, seed))
    if device.target.compute_capability >= 80:
        assert {finding.name for finding in findings} == NAMES
    for finding in findings:
        assert finding.ok, finding


@pytest.mark.parametrize("capability", [75, 86, 90])
def test_every_architecture_computes_what_the_isa_says(capability: int) -> None:
    findings = list(check_conformance(EmulatedDevice(capability)))
    later = {name for name in NAMES if "bfloat16" in name or name.startswith("mma_sparse")}
    assert {finding.name for finding in findings} >= (NAMES - later if capability < 80 else NAMES)
    for finding in findings:
        assert finding.ok, finding
