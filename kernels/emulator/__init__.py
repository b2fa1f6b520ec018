"""Interprets the PTX of the CUDA kernels on machines without a GPU."""
