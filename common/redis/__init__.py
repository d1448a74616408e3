"""Redis: addresses of its servers, connections to them, and the names of all keys."""
