"""Fixtures of all tests: real Redis servers, each test on an empty one, checked for leaked keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.servers import SERVER_KINDS, ServerKind, keys_without_expiry, make_server, raw_client
from tests.waiting import wait_until


@pytest.fixture(scope="session")
def running_servers() -> Iterator[dict[ServerKind, EmbeddedRedis]]:
    """Servers of this test process by kind, started when they are first wanted."""
    started: dict[ServerKind, EmbeddedRedis] = {}
    yield started
    for server in started.values():
        server.stop()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each kind of server, and on that of `serve` alone where it has the mark `one_server`."""
    if "server_kind" in metafunc.fixturenames:
        one = metafunc.definition.get_closest_marker("one_server") is not None
        metafunc.parametrize("server_kind", SERVER_KINDS[:1] if one else SERVER_KINDS, indirect=True)


@pytest.fixture
def server_kind(request: pytest.FixtureRequest) -> ServerKind:
    """The kind of server that the test runs on."""
    kind: ServerKind = request.param
    return kind


@pytest.fixture
def redis_url(server_kind: ServerKind, running_servers: dict[ServerKind, EmbeddedRedis]) -> Iterator[str]:
    """Address of an empty server; the test fails when it leaves a key that never expires."""
    server = running_servers.get(server_kind)
    if server is None:
        server = make_server(server_kind)
        server.start()
        running_servers[server_kind] = server
    client = raw_client(server.url)
    client.flushall()
    yield server.url
    # A process that was killed may have sent a key's time to live behind the key.
    with suppress(AssertionError):
        wait_until(lambda: not keys_without_expiry(client), 5.0)
    leaked = keys_without_expiry(client)
    client.close()
    assert not leaked, f"keys without a time to live: {leaked}"


@pytest.fixture
def own_server(server_kind: ServerKind) -> Iterator[EmbeddedRedis]:
    """A running server that the test may stop, fill or cut."""
    server = make_server(server_kind)
    server.start()
    yield server
    server.stop()
