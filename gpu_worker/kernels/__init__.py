"""Triton kernels, each with a plain PyTorch reference in `reference/`."""
