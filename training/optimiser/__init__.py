"""Muon for the encoder's matrices, AdamW for the rest, over flat buffers."""
