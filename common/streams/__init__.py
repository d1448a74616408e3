"""Streams and processes as Redis knows them: admission, ownership, audio in, results out, status."""
