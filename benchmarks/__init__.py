"""Benchmarks: programs to run by hand, and their results."""
