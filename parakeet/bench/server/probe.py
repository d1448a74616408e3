"""Probes the whole server with one empty stream, from hello to final."""

from __future__ import annotations

import socket
from typing import Any

import orjson

from parakeet.bench.load.track import FINAL_MESSAGE
from parakeet.bench.load.wire import OP_TEXT, WireError, client_frame
from parakeet.bench.plan import STRANGER, Access, Target


def probe(target: Target, timeout_s: float, access: Access = STRANGER) -> tuple[dict[str, Any] | None, str]:
    """Return the server's hello after a whole empty stream, or None and the reason."""
    decoder = access.decoder(target)
    hello: dict[str, Any] | None = None
    try:
        with _connected(target, timeout_s, access) as connection:
            connection.sendall(decoder.opening())
            while data := connection.recv(65536):
                for raw in decoder.feed(data)[0]:
                    message = orjson.loads(raw)
                    if message["type"] == "hello":
                        hello = message
                        connection.sendall(
                            client_frame(OP_TEXT, FINAL_MESSAGE)
                            if target.websocket
                            else FINAL_MESSAGE + b"\n"
                        )
                    elif message["type"] == "error":
                        return None, f"{message.get('code')}: {message.get('message')}"
                    elif message.get("is_final"):
                        return hello, ""
    except (OSError, WireError) as error:
        return None, str(error)
    return None, "the server closed the connection"


def _connected(target: Target, timeout_s: float, access: Access) -> socket.socket:
    connection = socket.create_connection((target.host, target.port), timeout_s)
    tls = access.tls(target)
    if tls is None:
        return connection
    try:
        return tls.wrap_socket(connection, server_hostname=target.host)
    except OSError:
        connection.close()
        raise
