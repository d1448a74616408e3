"""How the bundled tiny model is made: text, synthetic speech, training, export. See README.md."""
