"""Stateless front end: client sockets on one side, Redis Streams on the other."""
