"""The slots of a connection's streams: in the cluster, and among those that the client's key may have."""

from __future__ import annotations

from collections.abc import Sequence

from common.messages import Resume
from ingress.auth.client import Client
from ingress.auth.guard import Guard
from ingress.backplane import NOBODY, Backplane, Caller, Resumption
from ingress.clients.client_stream import ClientStream


class Slots:
    """What one connection has of them.

    streams: of the connection.
    guard: counts what the client's key may have.
    client: who it is; None as long as that is not known.
    traceparent: the trace that the client's request is a part of; empty for none.
    """

    __slots__ = ("_backplane", "_counted", "_guard", "_left", "_streams", "_traceparent", "client")

    def __init__(
        self,
        streams: Sequence[ClientStream],
        backplane: Backplane,
        guard: Guard,
        client: Client | None,
        traceparent: str,
    ) -> None:
        self._streams = streams
        self._backplane = backplane
        self._guard = guard
        self._traceparent = traceparent
        self._counted = 0  # streams that count for the client's key
        self._left = False
        self.client = client

    async def count(self) -> None:
        """Count the streams for the client's key, once a connection: slots given back are counted on.

        Raises StreamError.
        """
        if self._counted:
            return
        num_streams = len(self._streams)
        await self._guard.enter(self.client, num_streams)
        if self._left:  # meanwhile
            self._guard.leave(self.client, num_streams)
        else:
            self._counted = num_streams

    async def admit(self) -> None:
        """Take a slot for each stream: a new one, or that of `hello` again where it was given back.

        Raises StreamError, after which there is none.
        """
        caller = self._caller
        try:
            for stream in self._streams:
                if stream.stream_id is None:
                    stream.attach(await self._backplane.admit(stream, caller))
                else:
                    stream.attach(
                        await self._backplane.readmit(stream, stream.stream_id, stream.resume_token, caller)
                    )
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give all of them back."""
        for stream in self._streams:
            stream.abandon(keep=False)

    async def resume(self, request: Resume) -> Resumption:
        """Take the slot of another connection's stream instead. Raises StreamError."""
        (stream,) = self._streams
        resumption = await self._backplane.resume(stream, request, self._caller)
        stream.abandon(keep=False)  # the slot that this connection's own `hello` offered
        stream.attach(resumption.link)
        return resumption

    def resumed(self) -> None:
        """Note that another connection's stream goes on here; count it where a new one was refused."""
        if not self._counted:
            self._counted = 1
            self._guard.resumed(self.client, 1)

    def leave(self) -> None:
        """Note that the connection is over."""
        self._left = True
        if self._counted:
            self._guard.leave(self.client, self._counted)

    @property
    def _caller(self) -> Caller:
        """Whose the streams are."""
        client = self.client
        if client is None:
            return NOBODY
        return Caller(client.key_id or "", client.name, self._traceparent)
