"""What is on disk: checkpoints, name tables, quantization, pruning, sparsity."""
