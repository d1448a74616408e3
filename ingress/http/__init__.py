"""The WebSocket port: the head of each request is read here, and goes to a stream or to an endpoint."""
