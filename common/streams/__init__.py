"""Streams in Redis: admission, ownership, audio, results."""
