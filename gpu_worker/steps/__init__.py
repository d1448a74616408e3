"""Steps: how a batch of the engine is run on each kind of device and backend."""
