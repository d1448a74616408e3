"""Augmentation of clean speech: rooms, noise, other voices, channels, levels, gaps."""
