"""Attackers of every kind beside honest streams: `make attack`."""
