"""The features of this server that clients can query: `hello.capabilities` and `GET /v1/capabilities`."""

from __future__ import annotations

from typing import Final

MESSAGES: Final = ("config", "resume", "finalize", "phrases")
"""Messages of our own protocol that an older server does not understand."""

PROTOCOLS: Final = {
    "openai_realtime": "/v1/realtime",
    "openai_transcriptions": "/v1/audio/transcriptions",
    "deepgram_live": "/v1/listen",
    "deepgram_recordings": "/v1/listen",
}
"""Other protocols of the WebSocket port, and their paths: live ones over WebSocket, the others over HTTP."""

CAPABILITIES: Final = (*MESSAGES, *PROTOCOLS)
