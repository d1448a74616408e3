"""Limits of one connection: its buffers, and the times for which it is waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BEGIN_TIMEOUT_S: Final = 10.0
# Time for the one message that a refused client may still send.
REFUSED_GRACE_S: Final = 1.0
# Longer than the usual interruption of a radio link. Messages that wait meanwhile have a bound of their own
# (--send-buffer-bytes), so this bounds sockets and not memory, and has no flag.
UNREAD_TIMEOUT_S: Final = 30.0
MAX_FINALIZES: Final = 1000


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one connection.

    sample_rate: the rate that `hello` states, in Hz.
    max_undecoded_s: most audio of a stream that is accepted and not yet decoded.
    send_buffer_bytes: most bytes of results that a client has not read.
    unread_timeout_s: how long a client may leave all results unread.
    idle_timeout_s: silence after which a client is dropped, 0 for never.
    audio_timeout_s: time in which a stream has to bring a second of audio, 0 for no limit.
    begin_timeout_s: how long a slot is kept for a client that begins no stream.
    refused_grace_s: how long a refused client may still resume.
    max_finalizes: most unanswered `finalize` messages of a stream.
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
