"""`parakeet-server check`: checks on this machine that a model recognises speech correctly, and how fast."""
