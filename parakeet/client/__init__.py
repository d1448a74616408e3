"""The Python client: `transcribe` for complete audio, `connect` for a live stream."""

from parakeet.client.errors import (
    ClientBug,
    ClientError,
    ConnectionLost,
    ServerError,
    ServerSilent,
    UnusableKey,
)
from parakeet.client.opening import connect
from parakeet.client.stream import Stream
from parakeet.client.timeouts import ClientTimeouts
from parakeet.client.transcription import transcribe

__all__ = [
    "ClientBug",
    "ClientError",
    "ClientTimeouts",
    "ConnectionLost",
    "ServerError",
    "ServerSilent",
    "Stream",
    "UnusableKey",
    "connect",
    "transcribe",
]
