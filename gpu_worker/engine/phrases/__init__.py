"""Phrases of streams within the engine."""
