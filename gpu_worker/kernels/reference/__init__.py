"""References of the kernels in plain PyTorch; tests compare each kernel with its reference."""
