"""What is measured: ceilings, launches, linear layers, attention, whole models.

Contenders are our kernels and PyTorch's: its linear layer with bias (and GELU, in the tanh form)
is cuBLASLt with a fused epilogue, its scaled_dot_product_attention is its best fused attention, and
transformers' BERT is run with that attention. PyTorch is optional; without it our figures stand
beside their floors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.clock import Clock, Contender, Rounds, TorchClock, WallClock, race
from benchmarks.gpu.report import Report
from benchmarks.gpu.workloads import Shape, config_of, random_batch, random_weights
from minibert import model
from minibert.kernels.cuda.device import Device
from minibert.kernels.cuda.launch import has_sparse_gemm
from minibert.ops.cuda import CudaOps


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best that this device was seen to do."""

    flops_per_s: float
    bytes_per_s: float

    def floor_us(self, flops: float, nbytes: float) -> float:
        """No kernel that does this work can be quicker."""
        return max(flops / self.flops_per_s, nbytes / self.bytes_per_s) * 1e6


@dataclass(slots=True)
class Bench:
    """What all measurements need."""

    report: Report
    device: Device
    clock: Clock
    rounds: Rounds
    torch: Any
    torch_device: str

    def ops(self, dtype: str, **options: Any) -> CudaOps:
        """Fresh Ops on the device."""
        return CudaOps(self.device, name="cuda", dtype=dtype, num_streams=1, **options)

    def rival(self, work: Callable[[], Any]) -> Contender:
        """A contender that runs in PyTorch."""
        on_gpu = self.torch_device == "cuda"
        return Contender(work, TorchClock(self.torch) if on_gpu else WallClock())

    def torch_name(self, library: str) -> str:
        """A rival's name; on the CPU it is not the library that runs on a GPU."""
        if self.torch_device == "cuda":
            return f"{library} (PyTorch {self.torch.__version__})"
        return f"PyTorch {self.torch.__version__} on the CPU"

    def tensor(self, *shape: int) -> Any:
        """Random float16 numbers in PyTorch."""
        values = self.torch.randn(*shape, device=self.torch_device)
        return values.to(self.torch.float16)


def ceilings(bench: Bench, size: int, nbytes: int) -> Ceilings | None:
    """Peak of a large float16 product and of a copy, as PyTorch reaches them."""
    torch = bench.torch
    if torch is None:
        bench.report.skipped["ceilings"] = "PyTorch is not installed: no floors"
        return None
    a, b = bench.tensor(size, size), bench.tensor(size, size)
    product = race(
        bench.report,
        "ceilings",
        f"float16 product {size}^3",
        {bench.torch_name("cuBLAS"): bench.rival(lambda: a @ b)},
        bench.rounds,
    )
    source = torch.empty(nbytes, dtype=torch.uint8, device=bench.torch_device)
    target = torch.empty_like(source)
    copied = race(
        bench.report,
        "ceilings",
        f"copy of {nbytes >> 20} MiB",
        {bench.torch_name("copy"): bench.rival(lambda: target.copy_(source))},
        bench.rounds,
        note="read and written once",
    )
    seconds = {k: next(iter(v.values())) * 1e-6 for k, v in (("p", product), ("c", copied))}
    return Ceilings(2 * size**3 / seconds["p"], 2 * nbytes / seconds["c"])


def linear_layers(bench: Bench, shape: Shape, tokens: Sequence[int], best: Ceilings | None) -> None:
    """Every linear layer of a model at several numbers of tokens: float16, sparse, int8."""
    torch, rng = bench.torch, np.random.default_rng(0)
    d, f = shape.hidden_size, shape.intermediate_size
    layers = {
        "qkv": (3 * d, d, None),
        "attention_output": (d, d, None),
        "intermediate + gelu": (f, d, "gelu"),
        "output": (d, f, None),
    }
    for num_tokens in tokens:
        for name, (out_features, in_features, activation) in layers.items():
            weight = rng.standard_normal((out_features, in_features), np.float32) * 0.04
            bias = rng.standard_normal(out_features, np.float32)
            contenders: dict[str, Contender] = {}
            for label, dtype, invariant in (
                ("minibert float16", "float16", True),
                ("minibert float16, K split", "float16", False),
                ("minibert int8", "int8", True),
            ):
                if not invariant and num_tokens > 32:
                    continue
                contenders[label] = _our_linear(
                    bench, dtype, invariant, weight, bias, num_tokens, activation
                )
            if has_sparse_gemm(bench.device.target, "float16"):
                half = weight * (np.arange(in_features) % 4 < 2)
                contenders["minibert float16, 2:4 sparse"] = _our_linear(
                    bench, "float16", True, half, bias, num_tokens, activation, sparsity="2:4"
                )
            if torch is not None:
                contenders[bench.torch_name("cuBLASLt")] = _their_linear(
                    bench, num_tokens, out_features, in_features, activation
                )
            flops = 2.0 * num_tokens * out_features * in_features
            nbytes = 2.0 * (out_features * in_features + num_tokens * (out_features + in_features))
            race(
                bench.report,
                "linear layers",
                f"{shape.name} {name}, {num_tokens} tokens",
                contenders,
                bench.rounds,
                floor_us=best.floor_us(flops, nbytes) if best else None,
                note="floor of float16",
            )


def _our_linear(
    bench: Bench,
    dtype: str,
    invariant: bool,
    weight: Any,
    bias: Any,
    num_tokens: int,
    activation: Any,
    *,
    sparsity: str | None = None,
) -> Contender:
    ops = bench.ops(dtype, batch_invariant=invariant)
    prepared = ops.prepare_linear(weight, bias, name="layer.0.linear", sparsity=sparsity)
    table = ops.prepare_embedding(np.random.default_rng(1).standard_normal((100, weight.shape[1])))
    stream = _Kept(ops)
    with stream.context():
        uploaded = stream.ops.upload(random_batch([num_tokens], 100))
        hidden = stream.ops.embed(uploaded, (table, None, None), None)
    return stream.contender(
        lambda: stream.ops.linear(hidden, prepared, activation=activation), bench.clock
    )


def _their_linear(
    bench: Bench, num_tokens: int, out_features: int, in_features: int, activation: str | None
) -> Contender:
    torch = bench.torch
    x, weight = bench.tensor(num_tokens, in_features), bench.tensor(out_features, in_features)
    bias, weight_t = bench.tensor(out_features), weight.t()
    if activation is None:
        return bench.rival(lambda: torch.addmm(bias, x, weight_t))
    if bench.torch_device == "cuda":
        return bench.rival(lambda: torch._addmm_activation(bias, x, weight_t, use_gelu=True))
    return bench.rival(lambda: torch.nn.functional.gelu(torch.addmm(bias, x, weight_t)))


def attentions(
    bench: Bench, cases: Sequence[tuple[int, int, int, int]], best: Ceilings | None
) -> None:
    """Attention of (num_seqs, seqlen, num_heads, head_dim), against PyTorch's fused attention."""
    torch = bench.torch
    for num_seqs, seqlen, num_heads, head_dim in cases:
        width = num_heads * head_dim
        contenders = {
            "minibert float16": _our_attention(bench, num_seqs, seqlen, num_heads, head_dim)
        }
        if torch is not None:
            q, k, v = (bench.tensor(num_seqs, num_heads, seqlen, head_dim) for _ in range(3))
            fused = torch.nn.functional.scaled_dot_product_attention
            contenders[bench.torch_name("fused attention")] = bench.rival(partial(fused, q, k, v))
        tokens = num_seqs * seqlen
        race(
            bench.report,
            "attention",
            f"{num_seqs} x {seqlen}, {num_heads} heads of {head_dim}",
            contenders,
            bench.rounds,
            floor_us=best.floor_us(4.0 * tokens * seqlen * width, 8.0 * tokens * width)
            if best
            else None,
        )


def _our_attention(
    bench: Bench, num_seqs: int, seqlen: int, num_heads: int, head_dim: int
) -> Contender:
    ops = bench.ops("float16")
    values = np.random.default_rng(1).standard_normal((100, 3 * num_heads * head_dim), np.float32)
    table = ops.prepare_embedding(values)
    stream = _Kept(ops)
    with stream.context():
        uploaded = stream.ops.upload(random_batch([seqlen] * num_seqs, 100))
        qkv = stream.ops.embed(uploaded, (table, None, None), None)
    return stream.contender(
        lambda: stream.ops.attention(
            qkv, uploaded, num_heads=num_heads, head_dim=head_dim, softmax_scale=head_dim**-0.5
        ),
        bench.clock,
    )


def launches(bench: Bench, shape: Shape) -> None:
    """What a launch, a graph and a whole call cost the host, on little work for the device."""
    config = config_of(shape)
    ops = bench.ops("float16")
    parameters = model.prepare(ops, random_weights(shape), config)
    batch = random_batch([8], shape.vocab_size)
    stream = _Kept(ops)

    def pooled(on: Any, uploaded: Any) -> tuple[Any, ...]:
        hidden = model.encode(on, uploaded, parameters, config)
        return (on.normalize(on.pool(hidden, uploaded, "mean")),)

    def plain() -> None:
        uploaded = stream.ops.upload(batch)
        stream.ops.download(pooled(stream.ops, uploaded)[0])

    def graph() -> None:
        stream.ops.forward(batch, pooled, key="mean")

    race(
        bench.report,
        "host cost",
        f"{shape.name}, 8 tokens, upload to download",
        {
            "minibert, plain launches": stream.contender(plain, WallClock()),
            "minibert, graph": stream.contender(graph, WallClock()),
        },
        bench.rounds,
        note=f"{7 * shape.num_layers + 3} kernels",
    )
    with stream.context():
        uploaded = stream.ops.upload(batch)
        rows = stream.ops.embed(uploaded, parameters.tables, parameters.embedding_norm)
    race(
        bench.report,
        "host cost",
        "one small kernel",
        {"minibert, launch": stream.contender(lambda: stream.ops.normalize(rows), WallClock())},
        bench.rounds,
        note="time of the host until the call returns, queue never empty",
    )


def whole_models(
    bench: Bench,
    shape: Shape,
    cases: dict[str, list[int]],
    dtypes: Sequence[str],
    best: Ceilings | None,
) -> None:
    """Forward passes, from tokens on the host to vectors on the host."""
    config = config_of(shape)
    weights = random_weights(shape)
    theirs = _their_model(bench, shape) if bench.torch is not None else None
    prepared = {}
    for dtype in dtypes:
        ops = bench.ops(dtype)
        prepared[dtype] = (_Kept(ops), model.prepare(ops, weights, config))
    for name, seqlens in cases.items():
        batch = random_batch(seqlens, shape.vocab_size)
        contenders = {}
        for dtype, (stream, parameters) in prepared.items():

            def pooled(on: Any, uploaded: Any, parameters: Any = parameters) -> tuple[Any, ...]:
                hidden = model.encode(on, uploaded, parameters, config)
                return (on.normalize(on.pool(hidden, uploaded, "mean")),)

            def work(
                ops: Any = stream.ops, batch: Any = batch, pooled: Any = pooled, dtype: str = dtype
            ) -> None:
                ops.forward(batch, pooled, key=("mean", dtype))

            contenders[f"minibert {dtype}, graph"] = stream.contender(work, WallClock())
        if theirs is not None:
            contenders[theirs[0]] = theirs[1](seqlens)
        element_bytes = 2
        nbytes = shape.weight_bytes(element_bytes)
        race(
            bench.report,
            "whole models",
            f"{shape.name}, {name}, {sum(seqlens)} tokens",
            contenders,
            bench.rounds,
            floor_us=best.floor_us(shape.flops(seqlens), nbytes) if best else None,
            note="host to host; floor of float16 on real tokens",
        )


def _their_model(bench: Bench, shape: Shape) -> tuple[str, Callable[[list[int]], Contender]] | None:
    """BERT of transformers in float16 with fused attention, padded to the longest text."""
    try:
        import transformers
    except ImportError:
        bench.report.skipped["transformers"] = "not installed"
        return None
    torch = bench.torch
    # Their types know neither the attention to take nor that a model can move.
    make_config: Any = transformers.BertConfig
    make_model: Any = transformers.BertModel
    config = make_config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        attn_implementation="sdpa",
    )
    theirs = make_model(config, add_pooling_layer=False)
    theirs = theirs.to(bench.torch_device, torch.float16).eval()

    def contender(seqlens: list[int]) -> Contender:
        ids = torch.ones((len(seqlens), max(seqlens)), dtype=torch.int64)
        ends = torch.tensor(seqlens)[:, None]
        mask = (torch.arange(max(seqlens))[None] < ends).to(torch.int64)

        def work() -> None:
            with torch.inference_mode():
                on = bench.torch_device
                attended = mask.to(on)
                hidden = theirs(input_ids=ids.to(on), attention_mask=attended).last_hidden_state
                weight = attended[..., None].to(hidden.dtype)
                mean = (hidden * weight).sum(1) / weight.sum(1)
                torch.nn.functional.normalize(mean, dim=1).float().cpu()

        return Contender(work, WallClock())

    name = f"transformers {transformers.__version__} float16 sdpa"
    return name if bench.torch_device == "cuda" else f"{name} on the CPU", contender


class _Kept:
    """A stream that stays as long as its contenders are measured."""

    def __init__(self, ops: CudaOps) -> None:
        self._state = ops.new_stream()
        self.ops = ops.bound_to(self._state)

    def context(self) -> AbstractContextManager[None]:
        """Stand in the stream."""
        return self.ops.device.use(self._state.handle)

    def contender(self, work: Callable[[], Any], clock: Clock) -> Contender:
        """Work on this stream; run once, so that its kernels are loaded."""
        with self.context():
            work()
        return Contender(work, clock, self.context)
