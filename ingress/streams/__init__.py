"""The streams of this ingress over Redis: their life, their audio and results, and what looks after them."""
