"""Who is measured, in which arrangement, and what each is held to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BASELINE = "st-float32"

COSINE_MEAN = {"float32": 0.99999, "bfloat16": 0.999, "int8": 0.97}
"""Number format -> mean cosine to the baseline below which a contender is wrong. Float32 engines
differ in the sixth digit; the int8 limit lets every published recipe pass and no mistake."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One engine in one arrangement.

    Attributes:
        key: in results and on the command line.
        name: in tables.
        environment: of `environments.REQUIREMENTS`.
        module: of peers/, run by peers/worker.py.
        dtype: number format of its matrix products.
        options: handed to the module's `load`.
        graph: step of peers/convert.py whose file it loads, or None.
        unsuitable: why this processor cannot run it, or None.
    """

    key: str
    name: str
    environment: str
    module: str
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)
    graph: str | None = None
    unsuitable: str | None = None

    @property
    def is_minibert(self) -> bool:
        """Whether this is the engine of this project."""
        return self.module == "with_minibert"


def all_contenders(features: Collection[str]) -> tuple[Contender, ...]:
    """Every contender, in the order of the tables.

    Args:
        features: of `minibert.cli.machine.cpu_features`.
    """
    matrix_units = "AMX" in features
    vnni = not {"AVX-512 VNNI", "AVX-VNNI"}.isdisjoint(features)
    no_units = None if matrix_units else "this processor has no bfloat16 matrix units"
    same = None if matrix_units else "the same as highest on a processor without matrix units"
    st, ort, ov, ct2 = "sentence-transformers", "onnxruntime", "openvino", "ctranslate2"
    kernels = {"device": "cpu", "dtype": "float32"}
    return (
        Contender(BASELINE, st, st, "with_torch", "float32", {"dtype": "float32"}),
        Contender(
            "st-bfloat16", st, st, "with_torch", "bfloat16", {"dtype": "bfloat16"}, None, no_units
        ),
        Contender(
            "ort-float32", "ONNX Runtime", ort, "with_onnxruntime", "float32", {}, "onnx-fused"
        ),
        Contender(
            "ort-int8",
            "ONNX Runtime",
            ort,
            "with_onnxruntime",
            "int8",
            {},
            "onnx-int8" if vnni else "onnx-int8-narrow",
        ),
        Contender(
            "ov-float32",
            "OpenVINO",
            ov,
            "with_openvino",
            "float32",
            {"precision": "f32"},
            "openvino",
        ),
        Contender(
            "ov-bfloat16",
            "OpenVINO",
            ov,
            "with_openvino",
            "bfloat16",
            {"precision": "bf16"},
            "openvino",
            no_units,
        ),
        Contender(
            "ov-int8",
            "OpenVINO",
            ov,
            "with_openvino",
            "int8",
            {"precision": "bf16" if matrix_units else "f32"},
            "openvino-int8",
        ),
        Contender(
            "ct2-float32",
            "CTranslate2",
            ct2,
            "with_ctranslate2",
            "float32",
            {"compute_type": "float32"},
            ct2,
        ),
        Contender(
            "ct2-int8",
            "CTranslate2",
            ct2,
            "with_ctranslate2",
            "int8",
            {"compute_type": "int8"},
            ct2,
        ),
        Contender(
            "fastembed", "fastembed", "fastembed", "with_fastembed", "float32", {}, "onnx-fused"
        ),
        Contender(
            "minibert-numpy",
            "minibert on NumPy",
            "minibert",
            "with_minibert",
            "float32",
            {"device": "numpy", "dtype": "float32"},
        ),
        Contender("minibert-float32", "minibert", "minibert", "with_minibert", "float32", kernels),
        Contender(
            "minibert-high",
            'minibert "high"',
            "minibert",
            "with_minibert",
            "float32",
            {**kernels, "matmul_precision": "high"},
            None,
            same,
        ),
        Contender(
            "minibert-bfloat16",
            "minibert",
            "minibert",
            "with_minibert",
            "bfloat16",
            {"device": "cpu", "dtype": "bfloat16"},
            None,
            no_units,
        ),
        Contender(
            "minibert-int8",
            "minibert",
            "minibert",
            "with_minibert",
            "int8",
            {"device": "cpu", "dtype": "int8"},
        ),
    )


def choose(contenders: Sequence[Contender], keys: Sequence[str] | None) -> tuple[Contender, ...]:
    """Those with the given keys, in the order of the tables; all when None.

    Raises:
        ValueError: a key that no contender has.
    """
    if keys is None:
        return tuple(contenders)
    known = [contender.key for contender in contenders]
    for key in keys:
        if key not in known:
            raise ValueError(f"contenders must be among {', '.join(known)}, got {key!r}")
    return tuple(contender for contender in contenders if contender.key in keys)
