"""Plain PyTorch references of the kernels, which tests compare them with."""
