"""`parakeet-server check`: whether a model reads as it should on this machine, and how fast."""
