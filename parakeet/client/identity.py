"""The identity of a stream to the servers: its id, and the tokens that resume it on another connection."""

from __future__ import annotations

from dataclasses import replace

from common.errors import ErrorCode
from common.messages import Hello, Resume
from common.options import StreamOptions
from parakeet.client.channel import Channel
from parakeet.client.errors import ServerError
from parakeet.client.handshake import Handshake


class StreamIdentity:
    """The identity of one stream, from its first `hello` on.

    hello: the server's first message; its `resume_token` is replaced by each resumption.
    """

    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake
        self.hello = Hello(0, 0, "", ())
        self._token_before = ""  # the token before that in `hello`, after a resumption

    async def begin(self, url: str) -> Channel:
        """Connect for a new stream. Raises ServerError, ConnectionLost, ServerSilent."""
        channel, self.hello = await self._handshake.greet(url)
        return channel

    async def configure(self, channel: Channel, options: StreamOptions) -> None:
        """Tell the options of a new stream. Raises ServerError or ConnectionLost, the channel closed."""
        await self._handshake.configure(channel, self.hello, options)

    async def begin_anew(self, url: str, options: StreamOptions) -> Channel | None:
        """Connect for another stream in the place of one of which nothing has come back.

        Return None where the server expects another rate of samples. Raises ServerError, ConnectionLost,
        ServerSilent.
        """
        channel, hello = await self._handshake.greet(url)
        if hello.sample_rate != self.hello.sample_rate:
            await channel.close()
            return None
        self.hello, self._token_before = hello, ""
        await self._handshake.configure(channel, hello, options)
        return channel

    async def resume(self, url: str, last_seq: int, decoded: int) -> tuple[Channel, int]:
        """Connect to go on with the stream; return the connection and the sample to go on with.

        Shows the newest token, or the one before: a Redis that forgot its last moments may know no more than
        that one. last_seq: number of the last result that has come. decoded: samples of which results came.

        Raises ServerError, ConnectionLost, ServerSilent, as `Handshake.resume` does.
        """
        stream, token = self.hello.stream_id, self.hello.resume_token
        try:
            channel, resumed = await self._handshake.resume(url, Resume(stream, token, last_seq, decoded))
        except ServerError as error:
            if error.code != ErrorCode.RESUME_REFUSED or not self._token_before:
                raise
            token = self._token_before
            channel, resumed = await self._handshake.resume(url, Resume(stream, token, last_seq, decoded))
        self._token_before = token
        self.hello = replace(self.hello, resume_token=resumed.resume_token)
        return channel, resumed.next_sample
