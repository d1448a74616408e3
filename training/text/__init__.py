"""The text for speech: sentences of free sources and of templates, as labels and phonemes."""
