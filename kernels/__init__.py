"""What runs on the machine: CUDA kernels, CPU kernels and the PTX emulator."""
