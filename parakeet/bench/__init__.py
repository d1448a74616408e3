"""Load generator and measuring bench for any server that speaks the client protocol."""
