"""A guard in memory: what connections and recordings count for a key."""

from __future__ import annotations

import asyncio
import math

from ingress.auth.client import ANYBODY, Client
from ingress.auth.guard import OverLimit


class CountingGuard:
    """Counts streams and audio, and holds up newcomers at its gate (a `Guard`).

    streams: of this moment. entered: all of them. num_waiting: newcomers at the gate.
    audio_s, most_audio_s: seconds.
    """

    def __init__(self) -> None:
        self.streams = 0
        self.entered = 0
        self.audio_s = 0.0
        self.most_audio_s = math.inf
        self.num_waiting = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def identify(self, secret: str) -> Client:
        return ANYBODY

    async def enter(self, client: Client | None, num_streams: int) -> None:
        self.num_waiting += 1
        await self.gate.wait()
        self.num_waiting -= 1
        self.streams += num_streams
        self.entered += num_streams

    def resumed(self, client: Client | None, num_streams: int) -> None:
        self.streams += num_streams

    def leave(self, client: Client | None, num_streams: int) -> None:
        self.streams -= num_streams

    def check_audio(self, client: Client | None) -> None:
        if self.audio_s >= self.most_audio_s:
            raise OverLimit("The key has had as much audio today as it may have.", 60)

    def heard(self, client: Client | None, audio_s: float) -> None:
        assert self.streams > 0
        self.audio_s += audio_s
