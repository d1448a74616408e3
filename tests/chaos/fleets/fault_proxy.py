"""A proxy between processes and Redis that cuts, freezes, delays and deafens connections on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

_READ_BYTES: Final = 256 * 1024
_SUBSCRIBE: Final = b"SUBSCRIBE"


class _Pair:
    """One client connection and its connection to the server."""

    def __init__(self, proxy: FaultProxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.subscribes = False
        self.deaf = False

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()

    async def forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                if not replies and not self.subscribes and _SUBSCRIBE in data[:64]:
                    self.subscribes = True
                if not replies and self.proxy.lose_reply_to and self.proxy.lose_reply_to in data:
                    self.deaf = True
                await self.proxy.passing.wait()
                if self.proxy.delay_s:
                    await asyncio.sleep(self.proxy.delay_s)
                if replies and self.deaf:
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.cut()


class FaultProxy:
    """Listens on a unix socket and forwards to another; all faults are those of its connections.

    passing: cleared while nothing may pass. delay_s: how late everything passes. lose_reply_to: a
    connection that says this gets no reply any more.
    """

    def __init__(self, path: Path, upstream: Path) -> None:
        self._path = path
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.passing = asyncio.Event()
        self.passing.set()
        self.delay_s = 0.0
        self.lose_reply_to = b""

    @property
    def url(self) -> str:
        """Address for the processes behind the proxy."""
        return f"unix://{self._path}"

    @property
    def num_connections(self) -> int:
        return len(self._pairs)

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=_READ_BYTES)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.passing.set()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)
        if self._server is not None:
            await self._server.wait_closed()

    # Faults

    def cut(self, only: Callable[[_Pair], bool] = lambda _: True) -> int:
        """Reset connections; return how many."""
        chosen = [pair for pair in self._pairs if only(pair)]
        for pair in chosen:
            pair.cut()
        return len(chosen)

    def cut_subscriptions(self) -> int:
        """Reset the connections that listen to channels."""
        return self.cut(lambda pair: pair.subscribes)

    def cut_deaf(self) -> int:
        """Reset the connections that get no replies; return how many."""
        return self.cut(lambda pair: pair.deaf)

    async def freeze(self, seconds: float) -> None:
        """Let nothing pass, either way, for a while; nothing is lost."""
        self.passing.clear()
        await asyncio.sleep(seconds)
        self.passing.set()

    async def delay(self, delay_s: float, seconds: float) -> None:
        """Let everything pass later, for a while."""
        self.delay_s = delay_s
        await asyncio.sleep(seconds)
        self.delay_s = 0.0

    async def deafen(self, seconds: float) -> None:
        """Requests pass and are carried out, replies are lost; then the connections break."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.deaf = True
        await asyncio.sleep(seconds)
        for pair in pairs:
            pair.cut()

    # Connections

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self.passing.wait()
        try:
            answers, server = await asyncio.open_unix_connection(str(self._upstream), limit=_READ_BYTES)
        except OSError:
            client.transport.abort()
            return
        pair = _Pair(self, client, server)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                pair.forward(reader, server, replies=False), pair.forward(answers, client, replies=True)
            )
        finally:
            self._pairs.discard(pair)
            for writer in (client, server):
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
