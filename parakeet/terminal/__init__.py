"""Commands that a person runs in a terminal beside a running server."""
