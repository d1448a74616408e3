"""The WebSocket port: reads the head of each request, and passes it to a stream or to an endpoint."""
