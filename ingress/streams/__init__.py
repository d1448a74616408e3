"""The streams of this ingress over Redis: their life, audio and results, and the tasks that maintain them."""
