"""The first messages of a connection: a server's hello, a stream's options, a resumption."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from common.client_codec import encode_client_message
from common.errors import ErrorCode
from common.messages import Config, ErrorMessage, Hello, Resume, Resumed, ServerMessage
from common.options import StreamOptions
from common.server_codec import decode_server_message
from parakeet.client.channel import Channel, ChannelLost
from parakeet.client.errors import ConnectionLost, ServerError, ServerSilent

_NO_NEW_STREAM: Final = (ErrorCode.NO_FREE_STREAM, ErrorCode.OVER_LIMIT)


def coming_back(url: str) -> str:
    """Return the address for a connection that resumes a stream: it has `resume` in the query.

    A server then opens the WebSocket even if the client's key is at its limits.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss"):
        return url
    query = f"{parts.query}&resume" if parts.query else "resume"
    return urlunsplit(parts._replace(path=parts.path or "/", query=query))


class Handshake:
    """Opens connections and exchanges the first messages. It waits `timeout_s` at most for each answer."""

    def __init__(self, open_channel: Callable[[str], Awaitable[Channel]], timeout_s: float) -> None:
        self._open_channel = open_channel
        self._timeout_s = timeout_s

    async def greet(self, url: str) -> tuple[Channel, Hello]:
        """Connect for a new stream. Raises ServerError, ConnectionLost, ServerSilent."""
        channel, message = await self._first_message(url)
        if isinstance(message, Hello):
            return channel, message
        await channel.close()
        if isinstance(message, ErrorMessage):
            raise ServerError(message.code, message.message)
        raise ConnectionLost(f"{url} does not say hello.")

    async def configure(self, channel: Channel, hello: Hello, options: StreamOptions) -> None:
        """Send the options of a new stream. Raises ServerError or ConnectionLost, with the channel closed."""
        if options == StreamOptions():
            return
        if "config" not in hello.capabilities:
            await channel.close()
            raise ServerError("unknown_option", "This server takes no options.")
        try:
            await channel.send(encode_client_message(Config(options)))
        except BaseException as error:  # also where the caller has given up: the socket is nobody's then
            await channel.close()
            if isinstance(error, ChannelLost):
                raise ConnectionLost(str(error)) from error
            raise

    async def resume(self, url: str, request: Resume) -> tuple[Channel, Resumed]:
        """Connect to resume a stream. Raises ServerError, ConnectionLost, ServerSilent."""
        channel, first = await self._first_message(coming_back(url))
        # A full cluster, or a key at its limit, admits no new stream, but still resumes an old one.
        if isinstance(first, ErrorMessage) and first.code not in _NO_NEW_STREAM:
            await channel.close()
            raise ServerError(first.code, first.message)
        try:
            await channel.send(encode_client_message(request))
            answer = await self._expect(channel)
        except BaseException as error:  # also where the caller has given up
            await channel.close()
            if isinstance(error, ChannelLost):
                raise ConnectionLost(str(error)) from error
            raise
        if isinstance(answer, Resumed):
            return channel, answer
        await channel.close()
        if isinstance(answer, ErrorMessage):
            raise ServerError(answer.code, answer.message)
        raise ConnectionLost(f"{url} does not resume the stream: {answer}")

    async def _first_message(self, url: str) -> tuple[Channel, ServerMessage | None]:
        try:
            channel = await self._open_channel(url)
        except ChannelLost as error:
            lost = ConnectionLost(str(error))
            lost.retry_after_s = error.retry_after_s
            raise lost from error
        try:
            return channel, await self._expect(channel)
        except ServerSilent:
            await channel.close()
            raise ServerSilent(f"{url} did not answer within {self._timeout_s:g} s.") from None
        except BaseException:  # also if the caller was cancelled: no code owns the socket then
            await channel.close()
            raise

    async def _expect(self, channel: Channel) -> ServerMessage | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return decode_server_message(await channel.receive())
        except TimeoutError:
            raise ServerSilent(f"No answer within {self._timeout_s:g} s.") from None
        except ChannelLost as error:
            raise ConnectionLost(str(error)) from error
        except ValueError as error:
            raise ConnectionLost(f"The server sent what is no message: {error}") from error
