"""Converts a model for the runtimes: `python convert.py STEP MODEL TARGET [INPUT]`.

Runs in an environment with torch, transformers and the runtimes' own converters. Steps: `onnx` (as
exported), `onnx-fused` and `onnx-int8` (from INPUT, the exported graph), `openvino` and
`openvino-int8` (from INPUT), `ctranslate2`. `onnx-int8-narrow` keeps weights within 7 bits, which
processors without VNNI need: their multiply-add saturates.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def export_onnx(model: str, target: str) -> None:
    """Trace the encoder: input_ids, attention_mask, token_type_ids -> last_hidden_state."""
    import torch
    from transformers import AutoModel

    class LastHiddenState(torch.nn.Module):
        def __init__(self, encoder: Any) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    encoder = AutoModel.from_pretrained(
        model, attn_implementation="eager", add_pooling_layer=False, dtype=torch.float32
    )
    ids = torch.arange(100, 116).reshape(2, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    names = ["input_ids", "attention_mask", "token_type_ids"]
    sizes = {0: "num_texts", 1: "longest"}
    with torch.no_grad():
        torch.onnx.export(
            LastHiddenState(encoder).eval(),
            (ids, mask, torch.zeros_like(ids)),
            target,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], sizes),
            opset_version=17,
            dynamo=False,
        )


def fuse_onnx(model: str, target: str, source: str) -> None:
    """Fuse attention, GELU and layer norm, as ONNX Runtime's own tool does."""
    from onnxruntime.transformers.optimizer import optimize_model

    config = json.loads((Path(model) / "config.json").read_text())
    fused = optimize_model(
        source,
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        opt_level=0,
    )
    fused.save_model_to_file(target)


def quantize_onnx(target: str, source: str, *, narrow: bool) -> None:
    """Weights int8 per channel, activations quantised while running."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=narrow,
        # Fused operators have no shape inference, so their results' type must be told.
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )


def convert_openvino(target: str, source: str) -> None:
    """Float32 intermediate representation."""
    import openvino

    openvino.save_model(openvino.convert_model(source), target, compress_to_fp16=False)


def quantize_openvino(model: str, target: str, source: str) -> None:
    """Int8 weights and activations, calibrated on 300 texts."""
    import nncf
    import openvino
    from batches import Batcher

    texts = json.loads(Path(target).with_name("calibration.json").read_text(encoding="utf-8"))
    batcher = Batcher(model, batch_size=1)
    names = {"input_ids", "attention_mask", "token_type_ids"}
    inputs = [batch.inputs(names) for batch in batcher.batches(texts[:300])]
    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)


def convert_ctranslate2(model: str, target: str) -> None:
    """CTranslate2's own folder; it quantises when it loads."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(model).convert(target, force=True)


def main() -> None:
    """Carry out one step."""
    step, model, target, *rest = sys.argv[1:]
    if step == "onnx":
        export_onnx(model, target)
    elif step == "onnx-fused":
        fuse_onnx(model, target, rest[0])
    elif step in ("onnx-int8", "onnx-int8-narrow"):
        quantize_onnx(target, rest[0], narrow=step.endswith("narrow"))
    elif step == "openvino":
        convert_openvino(target, rest[0])
    elif step == "openvino-int8":
        quantize_openvino(model, target, rest[0])
    elif step == "ctranslate2":
        convert_ctranslate2(model, target)
    else:
        sys.exit(f"STEP must be one of those in the module's description, got {step!r}")


if __name__ == "__main__":
    main()
