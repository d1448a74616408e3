"""Messages over a socket, for clients: newline JSON over TCP or frames over WebSocket, one interface."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import urlsplit

import websockets.asyncio.client
import websockets.exceptions
import websockets.http11

from common.client_codec import encode_client_message
from common.errors import ErrorCode
from common.messages import Audio, Auth, Encoding
from parakeet.client.errors import ServerError

# Results carry the whole transcript, so a line of the server may be long.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_CLOSE_TIMEOUT_S: Final = 2.0


class ChannelLost(Exception):  # noqa: N818 - the name says it
    """The socket is gone, or could not be opened.

    retry_after_s: seconds that the server asked to wait before the next attempt.
    """

    retry_after_s: float | None = None


class Channel(Protocol):
    """One open socket to a server."""

    async def send(self, message: bytes) -> None:
        """Send one JSON message. Raises ChannelLost."""

    async def send_audio(self, audio: Audio, of_frames: Encoding) -> None:
        """Send audio in the form that suits the socket. Raises ChannelLost.

        of_frames: the encoding of this stream's binary frames.
        """

    async def receive(self) -> bytes | str:
        """Return the next message. Raises ChannelLost at the end."""

    async def close(self) -> None:
        """Close, within a bounded time."""


async def open_channel(url: str, timeout_s: float, api_key: str | None = None) -> Channel:
    """Connect to `ws://`, `wss://`, `tcp://` or `tcps://host:port`, and show the key where there is one.

    Raises ServerError (`unauthorized`, `over_limit`), ChannelLost, ValueError.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_s):
            if parts.scheme in ("ws", "wss"):
                return WebSocketChannel(
                    await websockets.asyncio.client.connect(
                        url,
                        additional_headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
                        compression=None,
                        max_size=MAX_MESSAGE_BYTES,
                        open_timeout=None,
                        ping_interval=None,
                        close_timeout=_CLOSE_TIMEOUT_S,
                    )
                )
            if parts.scheme in ("tcp", "tcps") and parts.hostname and parts.port:
                tls = ssl.create_default_context() if parts.scheme == "tcps" else None
                reader, writer = await asyncio.open_connection(
                    parts.hostname, parts.port, ssl=tls, limit=MAX_MESSAGE_BYTES
                )
                channel = TcpChannel(reader, writer)
                if api_key:
                    await channel.send(encode_client_message(Auth(api_key)))
                return channel
    except websockets.exceptions.InvalidStatus as error:
        raise _refusal(url, error.response) from error
    except (
        OSError,
        TimeoutError,
        UnicodeError,  # a host name that cannot be one
        ImportError,  # a proxy in the environment that needs another package
        websockets.exceptions.WebSocketException,
    ) as error:
        raise ChannelLost(f"{url} cannot be reached: {_reason(error)}.") from error
    raise ValueError(f"The address of a server is ws://host:port or tcp://host:port, not '{url}'.")


def _refusal(url: str, answer: websockets.http11.Response) -> ServerError | ChannelLost:
    """Return the error for an answer that opens no WebSocket."""
    sentence = (answer.body or b"").decode(errors="replace").strip()
    refusal: ServerError | ChannelLost
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        refusal = ServerError(ErrorCode.UNAUTHORIZED, sentence or f"HTTP {answer.status_code}")
    elif answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        refusal = ServerError(ErrorCode.OVER_LIMIT, sentence or f"HTTP {answer.status_code}")
    else:
        refusal = ChannelLost(f"{url} answers with HTTP {answer.status_code}: {sentence}")
    for seconds in answer.headers.get_all("Retry-After"):  # a proxy may add its own
        if seconds.isascii() and seconds.isdecimal():  # and it may be a date
            refusal.retry_after_s = max(float(seconds), refusal.retry_after_s or 0.0)
    return refusal


def _reason(error: Exception) -> str:
    """Return the system's words for an error of a socket, or else the error's own."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, (socket.gaierror, ssl.SSLError)):
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class TcpChannel:
    """Newline JSON."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: bytes) -> None:
        """Send one JSON message."""
        try:
            self._writer.write(message + b"\n")
            await self._writer.drain()
        except OSError as error:
            raise ChannelLost(str(error)) from error

    async def send_audio(self, audio: Audio, of_frames: Encoding) -> None:
        """Send audio as base64."""
        await self.send(encode_client_message(audio))

    async def receive(self) -> bytes:
        """Return the next line."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError) as error:
            raise ChannelLost(str(error)) from error
        if not line.endswith(b"\n"):
            raise ChannelLost("the server closed the connection")
        return line

    async def close(self) -> None:
        """Close the socket."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except TimeoutError:
            # The peer does not read the rest of the data; a waiting sender shall not go on waiting.
            self._writer.transport.abort()
        except OSError:
            pass


class WebSocketChannel:
    """Text frames for JSON, binary frames for audio."""

    def __init__(self, connection: websockets.asyncio.client.ClientConnection) -> None:
        self._connection = connection

    async def send(self, message: bytes) -> None:
        """Send one JSON message."""
        try:
            await self._connection.send(message, text=True)
        except (OSError, websockets.exceptions.ConnectionClosed) as error:
            raise ChannelLost(str(error)) from error

    async def send_audio(self, audio: Audio, of_frames: Encoding) -> None:
        """Send audio in the encoding of frames unchanged, other audio as base64."""
        if audio.encoding is not of_frames or audio.final:
            await self.send(encode_client_message(audio))
            return
        try:
            await self._connection.send(audio.payload)
        except (OSError, websockets.exceptions.ConnectionClosed) as error:
            raise ChannelLost(str(error)) from error

    async def receive(self) -> bytes | str:
        """Return the next frame."""
        try:
            return await self._connection.recv()
        except (OSError, websockets.exceptions.ConnectionClosed) as error:
            raise ChannelLost(str(error)) from error

    async def close(self) -> None:
        """Close with the closing handshake."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._connection.close()
        except TimeoutError:
            # The close frame waits behind audio that the peer does not read; a sender shall not wait either.
            self._connection.transport.abort()
