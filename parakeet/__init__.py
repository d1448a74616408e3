"""The composition root: command line, supervisor, embedded Redis server, clients and the demo."""
