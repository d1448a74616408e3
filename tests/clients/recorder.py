"""A proxy between client and server, which hands all bytes on as they are and keeps them with their times.

With a certificate it speaks TLS to the client, for those that insist.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from tests.certificates import Certificate
from tests.ports import HOST

_READ_BYTES: Final = 1 << 16
_STOP_S: Final = 10.0


@dataclass(slots=True)
class Recording:
    """What one connection carried: pieces of bytes with the time at which each went by (monotonic, s)."""

    sent: list[tuple[float, bytes]] = field(default_factory=list)
    received: list[tuple[float, bytes]] = field(default_factory=list)
    ended: bool = False


class Recorder:
    """Listens on a port of its own for as long as it is entered. server_port: where connections go on to."""

    def __init__(self, server_port: int, certificate: Certificate | None = None) -> None:
        self._server_port = server_port
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate.certificate, certificate.key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recorder", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.recordings: list[Recording] = []
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_STOP_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._relay(reader, writer), name="relay")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recording = Recording()
        self.recordings.append(recording)
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pump(reader, server_writer, recording.sent))
                    both.create_task(_pump(server_reader, writer, recording.received))
            finally:
                server_writer.close()
        finally:
            writer.close()
            recording.ended = True


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[tuple[float, bytes]]
) -> None:
    """Hand on all that comes; then say that no more does, where the transport can."""
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(_READ_BYTES):
            kept.append((time.monotonic(), data))
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()
