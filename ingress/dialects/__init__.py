"""The protocols that clients speak: bytes in, messages out, and back. No I/O, and nothing of Redis."""
