"""The time-outs of a client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """All waits of a client, in seconds.

    connect_s: until `hello`.   silence_s: without any message, before the connection is probed with
        a ping, and then again until it counts as lost.
    final_s: without progress after `finish`, or with more than 15 s of audio sent and not decoded.
    resume_s: to find a server that goes on with the stream.
    send_s: until there is room for more audio.
    """

    connect_s: float = 10.0
    silence_s: float = 10.0
    final_s: float = 60.0
    resume_s: float = 25.0
    send_s: float = 60.0
