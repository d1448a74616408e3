"""One trace a stream, through its ingress, Redis and its workers; nothing at all where tracing is off."""
