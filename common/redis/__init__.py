"""Redis: where its servers are, how they are spoken to, and the names of all keys."""
