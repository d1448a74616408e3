"""The model for training: plain PyTorch modules whose state dict has NeMo's names."""
