"""The sockets of clients on the TCP and the WebSocket port: accepting, reading, writing, closing."""
