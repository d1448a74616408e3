"""Benchmarks: programs to run by hand, and the results they gave."""
