"""Turn detection: voice activity, endpointing and smart-turn."""
