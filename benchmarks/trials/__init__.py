"""Trials: engines with random weights under load, their clocks and their searches."""
