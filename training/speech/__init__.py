"""Synthesisers that speak the text, in voices between and around those of their packages."""
