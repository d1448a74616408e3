"""The connection of one client: its dialect on one side, its streams on the other."""
