"""Implementations of steps: they run a batch of the engine on each kind of device and backend."""
