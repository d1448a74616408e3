"""The Python client: `transcribe` for audio that is there, `connect` for a stream to send and to read."""

from parakeet.client.errors import (
    ClientBug,
    ClientError,
    ConnectionLost,
    ServerError,
    ServerSilent,
    UnusableKey,
)
from parakeet.client.stream import Stream, connect
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
