"""API keys of clients, and the file that lists them."""
