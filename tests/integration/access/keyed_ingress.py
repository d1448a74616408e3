"""An ingress that asks for keys, and clients that show them."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from tests.ingress_process import IngressProcess
from tests.ports import HOST
from tests.stack import Stack

AUDIO = {"type": "audio", "data": base64.b64encode(bytes(6400)).decode()}


class Tcp:
    """A client of the TCP port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        name = None if tls is None else "localhost"
        client = cls(*await asyncio.open_connection(HOST, port, ssl=tls, server_hostname=name))
        try:
            yield client
        finally:
            client.writer.close()

    async def send(self, **message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")
        await self.writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message; None at the end."""
        async with asyncio.timeout(90):
            line = await self.reader.readline()
        return json.loads(line) if line else None

    async def text(self) -> str:
        """Return the final text of a little audio."""
        await self.send(**AUDIO, final=True)
        while (message := await self.receive()) is not None:
            assert message["type"] != "error", message
            if message.get("is_final"):
                return str(message["text"])
        raise AssertionError("there was no final result")


class Keys:
    """A keys file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"

    def make(self, **fields: Any) -> tuple[KeyId, str]:
        record, key = create_key(self.path, KeyRecord(key_id=KeyId(""), digest="", name="desk", **fields))
        return record.key_id, key


async def read(client: ClientConnection) -> AsyncIterator[str | bytes]:
    """Yield messages up to the end of the connection, whatever its code."""
    with suppress(ConnectionClosed):
        while True:
            yield await client.recv()


def serve(stack: Stack, keys: Keys, name: str = "i-1", **flags: object) -> IngressProcess:
    return stack.ingress(name, auth_keys_file=str(keys.path), **flags)
