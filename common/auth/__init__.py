"""Keys of clients: what a key is, and the file that lists them."""
