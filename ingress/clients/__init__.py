"""One client: its dialect on one side, its streams on the other."""
