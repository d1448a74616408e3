"""The Python client whose key is at a limit: a new stream is refused, the one that it has goes on."""

from __future__ import annotations

import pytest

from common.errors import RedisUnavailable
from ingress.auth.client import Client
from ingress.auth.guard import OverLimit
from parakeet.client import ClientTimeouts, ConnectionLost, ServerError, UnusableKey, connect, transcribe
from parakeet.client.handshake import coming_back
from tests.counting_guard import CountingGuard
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until

_TIMEOUTS = ClientTimeouts(connect_s=60, silence_s=60, final_s=60, resume_s=60, send_s=60)


class _FillingGuard(CountingGuard):
    """The guard of a key that may have one stream."""

    async def enter(self, client: Client | None, num_streams: int) -> None:
        if self.entered:
            raise OverLimit("The key has as many streams as it may have at once.", 5)
        await super().enter(client, num_streams)


@pytest.mark.parametrize("kind", ["tcp", "ws"])
async def test_a_key_at_its_limit_is_a_typed_error(kind: str) -> None:
    guard = _FillingGuard()
    guard.entered = 1
    async with serving(ScriptedBackplane(), guard=guard, counted_first=True) as harness:
        with pytest.raises(ServerError, match="as many streams") as raised:
            await connect(harness.tcp_url if kind == "tcp" else harness.ws_url, timeouts=_TIMEOUTS)
        assert raised.value.code == "over_limit"


@pytest.mark.parametrize("kind", ["tcp", "ws"])
async def test_a_stream_of_a_key_at_its_limit_is_resumed(kind: str) -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane, guard=_FillingGuard(), counted_first=True) as harness:
        url = harness.tcp_url if kind == "tcp" else harness.ws_url
        async with await connect(url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await wait_until(lambda: backplane.link.samples == 10)
            backplane.resumption = (10, 10, False)
            harness.transports[-1].abort()
            await wait_until(lambda: len(backplane.resume_requests) == 1)
            await stream.send(b"\0\0" * 5)
            await stream.finish()
            assert (await stream.final()).text == "15 samples"


async def test_a_redis_that_is_away_is_a_lost_connection() -> None:
    class AwayGuard(CountingGuard):
        async def enter(self, client: Client | None, num_streams: int) -> None:
            raise RedisUnavailable

    async with serving(ScriptedBackplane(), guard=AwayGuard(), counted_first=True) as harness:
        with pytest.raises(ConnectionLost, match="503"):
            await connect(harness.ws_url, timeouts=_TIMEOUTS)


@pytest.mark.parametrize(
    ("url", "back"),
    [
        ("ws://h:8000", "ws://h:8000/?resume"),
        ("wss://h/ws?a=b", "wss://h/ws?a=b&resume"),
        ("tcp://h:8765", "tcp://h:8765"),
    ],
)
def test_who_comes_back_says_so_in_the_query(url: str, back: str) -> None:
    assert coming_back(url) == back


@pytest.mark.parametrize("key", ["pk_…", "pk_two words", "pk_line\n", "pk_tab\t", "pk_\x7f"])
@pytest.mark.parametrize("kind", ["tcp", "ws"])
async def test_a_key_that_no_header_can_carry_is_the_callers_mistake(kind: str, key: str) -> None:
    async with serving(ScriptedBackplane()) as harness:
        url = harness.tcp_url if kind == "tcp" else harness.ws_url
        with pytest.raises(UnusableKey, match="visible ASCII") as raised:
            await connect(url, api_key=key)
        assert isinstance(raised.value, ValueError)
        assert key not in str(raised.value)
        with pytest.raises(UnusableKey):
            await transcribe(url, b"\0\0", api_key=key)
        assert not harness.transports, "nothing was sent"
