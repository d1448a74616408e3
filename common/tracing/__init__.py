"""Tracing: one trace for each stream, through its ingress, Redis and its workers."""
