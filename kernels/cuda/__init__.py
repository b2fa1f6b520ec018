"""CUDA C++ kernels, their loader and their launch configurations."""
