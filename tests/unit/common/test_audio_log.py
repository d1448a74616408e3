"""What becomes of audio that Redis does not take; the rest of the log is tested against real servers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from common.audio_log import AudioLog
from common.entries import StreamId
from common.errors import ErrorCode, Unavailable
from common.keys import Keys
from common.messages import Audio
from common.redis import AsyncRedis, RedisServers
from tests.waiting import until


async def test_who_appends_anew_when_told_of_a_failure_is_told_again() -> None:
    """As an ingress does, to bring a stream whose audio could not be saved to its end."""
    redis = AsyncRedis(RedisServers.parse(("unix:///nowhere/redis.sock",)))
    keys = Keys()
    log = AudioLog(redis, keys, give_up_ms=100)
    running = asyncio.create_task(log.run())
    told: list[tuple[int, ErrorCode]] = []

    def append_to(number: int) -> None:
        def failed(error: Unavailable) -> None:
            told.append((number, error.code))
            append_to(number)

        log.open(keys.stream(StreamId(number)), failed).append(Audio(b"", final=True))

    append_to(1)
    append_to(2)
    await until(lambda: len(told) >= 6, what="three failures of both")
    assert told[:6] == 3 * [(1, ErrorCode.REDIS_UNAVAILABLE), (2, ErrorCode.REDIS_UNAVAILABLE)]
    assert not running.done()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await redis.close()
