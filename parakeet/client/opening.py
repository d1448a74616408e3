"""How a stream of the Python client is opened."""

from __future__ import annotations

from collections.abc import Sequence

from common.auth.api_key import fits_a_header
from common.options import StreamOptions
from parakeet.client.errors import UnusableKey
from parakeet.client.stream import Stream
from parakeet.client.timeouts import ClientTimeouts


async def connect(
    url: str | Sequence[str],
    *,
    options: StreamOptions | None = None,
    resume: bool = True,
    window_s: float = 60.0,
    timeouts: ClientTimeouts | None = None,
    api_key: str | None = None,
) -> Stream:
    """Open a stream.

    url: `ws://host:port` or `tcp://host:port` (wss, tcps with TLS); of several, the first that takes
        the stream, and any for a resumption.
    resume: whether to resume after a lost connection, where the server can.
    window_s: audio sent and not decoded yet, in seconds, beyond which `send` waits (only with resume, where
        the server reports its progress).
    api_key: a key, or a temporary token, of a server that asks for one.

    Raises ServerError (code `no_free_stream` for a full cluster, `unauthorized` for a key that is missing
    or wrong), ConnectionLost, ServerSilent, and UnusableKey, a ValueError, for a key that cannot be one.
    """
    if api_key and not fits_a_header(api_key):
        raise UnusableKey
    stream = Stream(
        (url,) if isinstance(url, str) else tuple(url),
        options or StreamOptions(),
        resume=resume,
        window_s=window_s,
        timeouts=timeouts or ClientTimeouts(),
        api_key=api_key,
    )
    await stream.open()
    return stream
