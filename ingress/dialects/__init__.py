"""The protocols that clients speak, as codecs between bytes and messages, without I/O or Redis."""
