"""Layers of the model in plain PyTorch."""
