"""Sockets of clients: accepted, read, written and closed, on the TCP and the WebSocket port."""
