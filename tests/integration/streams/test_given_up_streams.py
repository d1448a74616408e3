"""Streams that an ingress has given up are brought to their end in Redis, whatever is known of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.entries import IngressId, StreamId
from common.errors import RedisUnavailable
from common.options import StreamOptions
from common.redis.keys import Keys
from common.streams.admission import Admission
from common.streams.assignments import NewStream, StreamDirectory
from tests.backplanes import running_backplane
from tests.servers import raw_client
from tests.waiting import until


class Listener:
    """A connection that is told that its stream failed."""

    undecoded_s = 0.0

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def on_failure(self, error: Exception) -> None:
        self.failure = error


def announce_worker(client: Any) -> None:
    """A worker with a slot, as admission sees it."""
    client.zadd("px:{0}:workers", {"w": 1e15})
    client.hset("px:{0}:w:w", mapping={"capacity": 1, "draining": 0, "owned": 0})
    for key in ("px:{0}:workers", "px:{0}:w:w"):
        client.pexpire(key, 60_000)


async def test_a_slot_that_is_granted_to_one_who_has_gone_is_given_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload whose client leaves is cancelled, at whatever moment; nobody else knows of its slot."""
    client, answered = raw_client(redis_url), asyncio.Event()
    ask = Admission._ask

    async def ask_for_long(admission: Admission, *arguments: Any) -> Any:
        answer = await ask(admission, *arguments)
        await answered.wait()
        return answer

    monkeypatch.setattr(Admission, "_ask", ask_for_long)
    announce_worker(client)
    async with running_backplane(redis_url, IngressId("i")) as backplane:
        listener: Any = Listener()
        asking = asyncio.create_task(backplane.admit(listener))
        await until(lambda: client.zcard("px:{0}:adm") == 1, what="the slot")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        answered.set()
        await until(lambda: client.zcard("px:{0}:adm") == 0, what="its return")
        assert backplane.num_streams == 0
    client.close()


@pytest.mark.parametrize("claimed", [True, False])
async def test_a_stream_whose_creation_was_not_answered_is_ended(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, claimed: bool
) -> None:
    """Redis has it all the same, and a worker may; without a final mark it would keep its slot for good."""
    client = raw_client(redis_url)
    create = StreamDirectory.create

    async def create_without_answer(directory: StreamDirectory, new: NewStream) -> None:
        await create(directory, new)
        raise RedisUnavailable

    monkeypatch.setattr(StreamDirectory, "create", create_without_answer)
    announce_worker(client)
    async with running_backplane(redis_url, IngressId("i"), redis_outage_s=0.3) as backplane:
        listener: Any = Listener()
        link = await backplane.admit(listener)
        keys = Keys().stream(StreamId(link.stream))
        link.begin(StreamOptions())
        await until(lambda: listener.failure is not None, what="the failure")
        if claimed:
            client.hset(keys.meta, "owner", "w")
        link.abandon(keep=False)
        if claimed:
            await until(lambda: client.xlen(keys.audio) > 0, what="the final mark")
            (_, fields), *more = client.xrange(keys.audio)
            assert (fields[b"o"], fields[b"x"], more) == (b"0", b"1", [])
        else:
            await until(lambda: not client.exists(keys.meta, keys.audio), what="its removal")
            await until(lambda: client.zcard("px:{0}:adm") == 0, what="the slot")
    client.close()
