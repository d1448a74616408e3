"""The making of the bundled tiny model: text, synthetic speech, training, export. See README.md."""
