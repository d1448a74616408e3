"""The server under load: its start, a probe, and its use of CPU and memory."""
