"""Recordings that are uploaded whole: decoded, streamed to a worker, and answered in one response."""
