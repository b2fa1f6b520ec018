"""Kernels for the CPU: one small C++ extension, dispatched over instruction sets."""
