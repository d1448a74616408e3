"""What API keys use, as Redis counts it, also where a request is repeated because its reply was lost."""

from __future__ import annotations

from typing import Any

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from common.entries import IngressId
from common.redis.clients import AsyncRedis, PipelinedCommands, RedisServers
from common.redis.keys import Keys
from common.streams.key_usage import Bound, KeyUsage

pytestmark = pytest.mark.one_server

KEY = KeyId("abcdefgh")
RECORD = KeyRecord(key_id=KEY, digest="", name="desk", new_per_minute=2, max_streams=2)


class Repeating(PipelinedCommands):
    """Sends each command twice, as after a reply that was lost."""

    async def execute_command(self, *arguments: Any) -> Any:
        await super().execute_command(*arguments)
        return await super().execute_command(*arguments)


@pytest.mark.parametrize("client", [PipelinedCommands, Repeating])
async def test_what_is_repeated_is_counted_once(redis_url: str, client: type[PipelinedCommands]) -> None:
    redis = AsyncRedis(RedisServers.parse((redis_url,)))
    try:
        first, second = (KeyUsage(client(redis, 0), Keys(), IngressId(name)) for name in ("i-1", "i-2"))
        assert await first.enter(RECORD, 0, 2) is None
        assert await first.enter(RECORD, 1, 1) is Bound.NEW
        assert await first.enter(RECORD, 2, 1) is Bound.STREAMS
        assert await first.report(KEY, 2, 10.0, "a") == 10.0
        assert await second.report(KEY, 0, 5.0, "a") == 15.0
        assert await first.report(KEY, 2, 10.0, "a") == 15.0
        assert await first.report(KEY, 2, 1.5, "b") == 16.5
        assert await first.report(KEY, 0, 0.0, "c") == 16.5
    finally:
        await redis.close()
