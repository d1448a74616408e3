"""The Python client: `transcribe` for complete audio, `connect` for a live stream."""

from common.messages import Result
from common.options import StreamOptions
from parakeet.audio.errors import BadAudio
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
    "BadAudio",
    "ClientBug",
    "ClientError",
    "ClientTimeouts",
    "ConnectionLost",
    "Result",
    "ServerError",
    "ServerSilent",
    "Stream",
    "StreamOptions",
    "UnusableKey",
    "connect",
    "transcribe",
]
