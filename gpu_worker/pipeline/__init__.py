"""The way of a stream's audio through a worker, between Redis and the engine."""
