"""The checkpoint that a session of training leaves for the next one, of at most 20 MB."""
