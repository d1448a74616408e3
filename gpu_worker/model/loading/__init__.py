"""Loading of a model from a `.nemo` file, a folder or the hub."""
