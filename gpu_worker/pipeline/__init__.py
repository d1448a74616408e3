"""The pipeline of a stream's audio and results through a worker, between Redis and the engine."""
