"""The encoder's mathematics in float64 NumPy, written as formulas; shares nothing with minibert."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def gelu(x: Any) -> Float64:
    erf = np.vectorize(math.erf, otypes=[np.float64])
    x = np.asarray(x, np.float64)
    return x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Any) -> Float64:
    x = np.asarray(x, np.float64)
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: Float64) -> Float64:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Float64:
    x = np.asarray(x, np.float64)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weight + bias


def attention(qkv: Any, cu_seqlens: Any, num_heads: int, scale: float) -> Float64:
    """qkv (num_tokens, 3 * hidden) -> context (num_tokens, hidden), each sequence by itself."""
    qkv = np.asarray(qkv, np.float64)
    width = qkv.shape[1] // 3
    head_dim = width // num_heads
    out = np.zeros((qkv.shape[0], width))
    for begin, end in pairwise(cu_seqlens):
        for h in range(num_heads):
            columns = slice(h * head_dim, (h + 1) * head_dim)
            q = qkv[begin:end, :width][:, columns]
            k = qkv[begin:end, width : 2 * width][:, columns]
            v = qkv[begin:end, 2 * width :][:, columns]
            out[begin:end, columns] = softmax(scale * q @ k.T) @ v
    return out


def pool(hidden: Any, cu_seqlens: Any, mode: str, skip: Any) -> Float64:
    rows = []
    hidden = np.asarray(hidden, np.float64)
    for begin, end, left_out in zip(cu_seqlens[:-1], cu_seqlens[1:], skip, strict=True):
        kept = hidden[begin + left_out : end]
        weights = np.arange(left_out + 1, end - begin + 1)[:, None]
        rows.append(
            {
                "cls": kept[0],
                "lasttoken": kept[-1],
                "max": kept.max(axis=0),
                "mean": kept.mean(axis=0),
                "mean_sqrt_len_tokens": kept.sum(axis=0) / math.sqrt(len(kept)),
                "weightedmean": (weights * kept).sum(axis=0) / weights.sum(),
            }[mode]
        )
    return np.stack(rows)
