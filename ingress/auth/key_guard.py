"""The guard of a server with keys: counts each key's use here and, in Redis, over all ingresses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from common.auth.api_key import KeyId
from common.errors import ErrorCode, RedisUnavailable, StreamError
from common.redis.outages import OUTAGES
from common.streams.key_usage import Bound, KeyUsage
from ingress.auth.client import KEY_ENDED, NOT_FOR_STREAMS, Client
from ingress.auth.door import Door
from ingress.auth.guard import OverLimit

logger = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 1.0
# Unchanged use of a key is reported again this often, in case Redis has lost it.
_TELL_ANEW_EVERY: Final = 30

_MINUTE_S: Final = 60
_DAY_S: Final = 86_400
# The time at which one of a key's streams will end is not known.
_STREAMS_AGAIN_S: Final = 5

_SENTENCES: Final = {
    Bound.STREAMS: "The key has as many streams as it may have at once.",
    Bound.NEW: "The key has begun as many streams in this minute as it may.",
    Bound.AUDIO: "The key has had as much audio today as it may have.",
}


class _Use:
    """The use of one key on this ingress.

    audio_s: seconds of audio that are in no report yet. told_s: those of the report that has no answer yet.
    report: the name of that report; empty where each is answered. today_s: seconds reported by all ingresses
    this day.
    """

    __slots__ = ("audio_s", "changed", "report", "streams", "today_s", "told_s")

    def __init__(self) -> None:
        self.streams = 0
        self.audio_s = 0.0
        self.told_s = 0.0
        self.report = ""
        self.today_s = 0.0
        self.changed = False


class KeyGuard:
    """Counts the streams and the audio of keys (a `Guard`).

    A secret on the TCP port carries no address: `for_address` returns a guard that knows the address.
    unix_s: returns Unix time, by which minutes and days are counted.
    """

    def __init__(self, door: Door, usage: KeyUsage, unix_s: Callable[[], float] = time.time) -> None:
        self._door = door
        self._usage = usage
        self._unix_s = unix_s
        self._uses: dict[KeyId, _Use] = {}

    def for_address(self, address: str) -> AddressGuard:
        """Return the guard of a connection from this address."""
        return AddressGuard(self, self._door, address)

    async def enter(self, client: Client | None, num_streams: int) -> None:
        """Count new streams of a client. Raises OverLimit, RedisUnavailable or `unauthorized`."""
        if client is None or client.key is None:
            return
        if not self._door.still_admits(client):  # its key ended since it came in
            raise StreamError(ErrorCode.UNAUTHORIZED, KEY_ENDED)
        record = client.key
        use = self._uses.setdefault(record.key_id, _Use())
        before = use.streams
        # Counted first: others of the same key may ask while this one waits.
        use.streams += num_streams
        bound: Bound | None = None
        try:
            bound = await self._usage.enter(record, before, num_streams)
        except BaseException:
            use.streams -= num_streams
            use.changed = True
            raise
        if bound is not None:
            use.streams -= num_streams
            use.changed = True
            raise OverLimit(_SENTENCES[bound], self._retry_after_s(bound))

    def _retry_after_s(self, bound: Bound) -> int:
        """Return the seconds until the count of this bound begins anew."""
        if bound is Bound.STREAMS:
            return _STREAMS_AGAIN_S
        period_s = _MINUTE_S if bound is Bound.NEW else _DAY_S
        return int(period_s - self._unix_s() % period_s) + 1

    def resumed(self, client: Client | None, num_streams: int) -> None:
        """Count resumed streams of a client: no limit refuses them."""
        if client is not None and client.key_id is not None:
            use = self._uses.setdefault(client.key_id, _Use())
            use.streams += num_streams
            use.changed = True

    def leave(self, client: Client | None, num_streams: int) -> None:
        """Subtract ended streams of a client."""
        if client is not None and client.key_id is not None:
            use = self._uses[client.key_id]
            use.streams -= num_streams
            use.changed = True

    def heard(self, client: Client | None, audio_s: float) -> None:
        """Add seconds of audio of a client."""
        if client is not None and client.key is not None:
            use = self._uses[client.key.key_id]
            use.audio_s += audio_s
            use.changed = True

    def check_audio(self, client: Client | None) -> None:
        """Raise OverLimit where the client has used up its audio of this day, by the last report."""
        if client is not None and client.key is not None and client.key.audio_s_per_day:
            use = self._uses[client.key.key_id]
            if use.today_s + use.told_s + use.audio_s >= client.key.audio_s_per_day:
                raise OverLimit(_SENTENCES[Bound.AUDIO], self._retry_after_s(Bound.AUDIO))

    async def run(self) -> None:
        """Report to Redis until cancelled."""
        turn = 0
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            turn += 1
            await self._report(everything=turn % _TELL_ANEW_EVERY == 0)

    async def _report(self, *, everything: bool) -> None:
        for key, use in list(self._uses.items()):
            if not (use.changed or (everything and use.streams)):
                continue
            if not use.report:
                use.report, use.told_s, use.audio_s = uuid4().hex, use.audio_s, 0.0
            use.changed = use.audio_s > 0
            try:
                use.today_s = await self._usage.report(key, use.streams, use.told_s, use.report)
            except RedisUnavailable as error:
                # Redis may have counted it: it is repeated as it is, and newer audio waits for the next one.
                use.changed = True
                OUTAGES.log_retry(logger, "what keys use is reported later: %s", error)
                return
            use.report, use.told_s = "", 0.0
            if not use.streams and not use.changed:
                del self._uses[key]


class AddressGuard:
    """The guard of one connection (a `Guard`); wrong keys count against the connection's address."""

    __slots__ = ("_address", "_door", "_guard")

    def __init__(self, guard: KeyGuard, door: Door, address: str) -> None:
        self._guard = guard
        self._door = door
        self._address = address

    def identify(self, secret: str) -> Client:
        """Return the client that holds this key. Raises StreamError `unauthorized`."""
        client = self._door.admit_secret(secret, self._address)
        if not client.may("stream"):
            self._door.lacks_scope()
            raise StreamError(ErrorCode.UNAUTHORIZED, NOT_FOR_STREAMS)
        return client

    async def enter(self, client: Client | None, num_streams: int) -> None:
        """Count new streams of a client. Raises OverLimit, or RedisUnavailable."""
        await self._guard.enter(client, num_streams)

    def resumed(self, client: Client | None, num_streams: int) -> None:
        """Count resumed streams of a client: no limit refuses them."""
        self._guard.resumed(client, num_streams)

    def leave(self, client: Client | None, num_streams: int) -> None:
        """Subtract ended streams of a client."""
        self._guard.leave(client, num_streams)

    def heard(self, client: Client | None, audio_s: float) -> None:
        """Add seconds of audio of a client."""
        self._guard.heard(client, audio_s)

    def check_audio(self, client: Client | None) -> None:
        """Raise OverLimit where the client has used up its audio of this day."""
        self._guard.check_audio(client)
