"""What bounds one connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BEGIN_TIMEOUT_S: Final = 10.0
# Time for the one message that a refused client may still send.
REFUSED_GRACE_S: Final = 1.0
# Longer than a radio link is gone that comes back; what waits meanwhile has a bound of its own
# (--send-buffer-bytes), so this bounds a socket and not memory, and has no flag.
UNREAD_TIMEOUT_S: Final = 30.0
MAX_FINALIZES: Final = 1000


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What bounds one connection.

    sample_rate: stated in `hello`, Hz.   max_undecoded_s: audio of a stream, accepted and not yet decoded.
    send_buffer_bytes: results that a client has not read.
    unread_timeout_s: how long a client may read nothing of them.
    idle_timeout_s: silence after which a client is dropped, 0 for never.
    audio_timeout_s: in which a stream has to have a second of audio, 0 for never.
    begin_timeout_s: how long a slot is kept for a client that begins no stream.
    refused_grace_s: how long a refused client may still resume.
    max_finalizes: of a stream, without an answer.
    """

    sample_rate: int
    max_undecoded_s: float
    send_buffer_bytes: int
    unread_timeout_s: float = UNREAD_TIMEOUT_S
    begin_timeout_s: float = BEGIN_TIMEOUT_S
    idle_timeout_s: float = 0.0
    audio_timeout_s: float = 0.0
    refused_grace_s: float = REFUSED_GRACE_S
    max_finalizes: int = MAX_FINALIZES
