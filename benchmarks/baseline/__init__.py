"""The plain redis-py implementation that the server's hot path is compared with."""
