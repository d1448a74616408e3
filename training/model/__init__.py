"""The model as it is trained: plain PyTorch modules whose state dict has NeMo's names."""
