"""The phrases of streams, as the engine keeps them."""
