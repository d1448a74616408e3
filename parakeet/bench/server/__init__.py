"""The server under load: a fresh start, a probe, and the use of CPU and memory."""
