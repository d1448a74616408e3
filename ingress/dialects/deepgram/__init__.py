"""Deepgram's listen protocol: recordings and live streams. No I/O."""
