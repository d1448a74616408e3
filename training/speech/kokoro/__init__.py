"""Kokoro-82M in plain PyTorch: batched, so that a GPU speaks hundreds of times faster than real time."""
