"""The streams of a connection, one for each channel of its audio: their slots, their audio and their ends.

A slot is a place in the cluster, and one among those that the client's key may have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from common.messages import Audio, Phrases, Resume
from common.options import StreamOptions
from ingress.auth.client import Client
from ingress.auth.guard import Guard
from ingress.backplane import CLIENT_GONE, FINAL, NOBODY, Backplane, Caller, Resumption
from ingress.clients.client_stream import ClientStream


class ClientStreams:
    """The streams of one connection.

    streams: at least one.   num_streams: how many.
    first: speaks for all of them where they are alike, as in the length of audio.
    guard: counts what the client's key may have.
    client: who it is; None as long as that is not known.
    traceparent: the trace that the client's request is a part of; empty for none.
    """

    __slots__ = (
        "_backplane",
        "_counted",
        "_guard",
        "_left",
        "_streams",
        "_traceparent",
        "client",
        "first",
        "num_streams",
    )

    def __init__(
        self,
        streams: Sequence[ClientStream],
        backplane: Backplane,
        guard: Guard,
        client: Client | None,
        traceparent: str,
    ) -> None:
        self._streams: Final = streams
        self.first: Final = streams[0]
        self.num_streams: Final = len(streams)
        self._backplane = backplane
        self._guard = guard
        self._traceparent = traceparent
        self._counted = 0  # streams that count for the client's key
        self._left = False
        self.client = client

    # Slots

    def identify(self, secret: str) -> None:
        """Learn whose they are by a key. Raises StreamError `unauthorized`."""
        self.client = self._guard.identify(secret)

    async def count(self) -> None:
        """Count the streams for the client's key, once a connection: slots given back are counted on.

        Raises StreamError.
        """
        if self._counted:
            return
        await self._guard.enter(self.client, self.num_streams)
        if self._left:  # meanwhile
            self._guard.leave(self.client, self.num_streams)
        else:
            self._counted = self.num_streams

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
            self.abandon(keep=False)
            raise

    async def resume(self, request: Resume) -> Resumption:
        """Take the slot of another connection's stream instead. Raises StreamError."""
        (stream,) = self._streams
        resumption = await self._backplane.resume(stream, request, self._caller)
        stream.abandon(keep=False)  # the slot that this connection's own `hello` offered
        stream.attach(resumption.link)
        return resumption

    def resumed(self, resumption: Resumption) -> None:
        """Note that another connection's stream goes on here; count it where a new one was refused."""
        self.first.resumed(resumption)
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

    # Streams

    def __iter__(self) -> Iterator[ClientStream]:
        return iter(self._streams)

    @property
    def ended(self) -> bool:
        """Whether the last result of each, or its error, has come."""
        return all(stream.ended for stream in self._streams)

    @property
    def num_begun(self) -> int:
        """How many have begun."""
        return sum(stream.begun for stream in self._streams)

    def begin(self, options: StreamOptions) -> None:
        """Create them."""
        for stream in self._streams:
            stream.begin(options)

    def append(self, audio: Audio) -> bool:
        """Append audio, of interleaved channels; False asks to stop reading until `on_room`."""
        if self.num_streams == 1:
            return self.first.append(audio)
        has_room = True
        for stream, part in zip(self._streams, split_channels(audio, self.num_streams), strict=True):
            has_room &= stream.append(part)
        return has_room

    def finalize(self) -> bool:
        """Ask each for a result of all audio so far. Returns and raises as `ClientStream.finalize` does."""
        has_room = True
        for stream in self._streams:
            has_room &= stream.finalize()
        return has_room

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the phrases of each. Returns and raises as `ClientStream.replace_phrases` does."""
        has_room = True
        for stream in self._streams:
            has_room &= stream.replace_phrases(change)
        return has_room

    def abandon(self, *, keep: bool, code: str = CLIENT_GONE) -> None:
        """Nobody listens any more; see `StreamLink.abandon`."""
        for stream in self._streams:
            stream.abandon(keep=keep, code=code)

    def release(self, code: str = FINAL) -> None:
        """Note that the end has been sent; give up those that have not come to theirs."""
        for stream in self._streams:
            if not stream.ended:
                stream.abandon(keep=False, code=code)
            elif stream.link is not None:
                stream.release(code=code)


def split_channels(audio: Audio, num_channels: int) -> list[Audio]:
    """Return the audio of each channel, of samples that are interleaved."""
    payload, size = audio.payload, audio.encoding.sample_bytes
    step = size * num_channels
    channels = []
    for channel in range(num_channels):
        part = bytearray(len(payload) // num_channels)
        for at in range(size):
            part[at::size] = payload[channel * size + at :: step]
        channels.append(Audio(bytes(part), audio.encoding, audio.final))
    return channels
