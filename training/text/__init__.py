"""The text that is spoken: sentences of free sources and of templates, as labels and phonemes."""
