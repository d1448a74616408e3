"""The wire format of a lane's rare requests and their answers: JSON and buffers over a socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

import orjson

_HEAD: Final = struct.Struct("<II")
# A whole state of a stream has up to 15 MB; a lane that announces more is faulty.
MAX_BYTES: Final = 64 << 20


class WireFault(Exception):  # noqa: N818 - it says what it is
    """The other side has sent something invalid."""


def send(link: socket.socket, message: Mapping[str, Any], buffers: Mapping[str, memoryview | bytes]) -> None:
    """Send a message and its buffers. Raises OSError where the other side is gone."""
    sizes = {name: memoryview(buffer).nbytes for name, buffer in buffers.items()}
    head = orjson.dumps({"message": message, "sizes": sizes})
    link.sendall(_HEAD.pack(len(head), sum(sizes.values())) + head)
    for buffer in buffers.values():
        link.sendall(buffer)


def receive(link: socket.socket) -> tuple[dict[str, Any], dict[str, memoryview]] | None:
    """Return the next message with its buffers; None where the other side is gone.  Raises WireFault."""
    head = _read(link, _HEAD.size)
    if head is None:
        return None
    num_bytes, num_buffer_bytes = _HEAD.unpack(head)
    if num_bytes + num_buffer_bytes > MAX_BYTES:
        raise WireFault(f"a message of {num_bytes + num_buffer_bytes} bytes")
    said, data = _read(link, num_bytes), _read(link, num_buffer_bytes)
    if said is None or data is None:
        return None
    try:
        values = orjson.loads(said)
        message, sizes = values["message"], values["sizes"]
        if sum(sizes.values()) != num_buffer_bytes:
            raise ValueError("sizes")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireFault(f"a message that cannot be read: {error}") from error
    buffers, at, view = {}, 0, memoryview(data)
    for name, size in sizes.items():
        buffers[name] = view[at : at + size]
        at += size
    return message, buffers


def hang_up(link: socket.socket) -> None:
    """End a connection for both sides; calls that wait for it return. The descriptor stays open."""
    try:
        link.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        return


def _read(link: socket.socket, count: int) -> bytearray | None:
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        try:
            read = link.recv_into(view[at:])
        except OSError:
            return None
        if not read:
            return None
        at += read
    return data
