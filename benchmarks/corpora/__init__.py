"""Recordings and other speech that benchmarks play, with what is said in them."""
