"""BERT inference from scratch: pure arrays, own kernels, no deep-learning framework."""

from __future__ import annotations

__version__ = "0.1.0"
