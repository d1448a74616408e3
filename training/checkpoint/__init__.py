"""What one session of training leaves for the next, in at most 20 MB."""
