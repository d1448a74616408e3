"""Ingresses divide the servers among them: each commits to few, and all servers get as much."""

from __future__ import annotations

from collections import Counter

import pytest

from common.presence.leases import IngressPlace
from common.redis.clients import AsyncRedis, RedisServers
from common.redis.requirements import memory_share
from ingress.streams.home import HomeServers


def homes(num_servers: int, shards: int, place: IngressPlace) -> HomeServers:
    urls = tuple(f"redis://127.0.0.1:{6379 + number}/0" for number in range(num_servers))
    home = HomeServers(AsyncRedis(RedisServers.parse(urls, shards)), 1.0)
    home.move(place)
    return home


def spread(num_ingresses: int, num_servers: int, shards: int = 0, streams: int = 600) -> list[Counter[int]]:
    """Streams on each shard, of each ingress."""
    places = [IngressPlace(rank, num_ingresses) for rank in range(num_ingresses)]
    made = [homes(num_servers, shards or num_servers, place) for place in places]
    return [Counter(home.next_shard() for _ in range(streams)) for home in made]


def test_two_ingresses_have_two_of_four_servers_each() -> None:
    first, second = spread(2, 4)
    assert set(first) == {0, 1}
    assert set(second) == {2, 3}


def test_one_ingress_uses_all_servers() -> None:
    assert set(spread(1, 4)[0]) == {0, 1, 2, 3}


def test_more_ingresses_than_servers_share_them() -> None:
    assert [set(found) for found in spread(4, 2)] == [{0}, {0}, {1}, {1}]


@pytest.mark.parametrize("ingresses", [1, 2, 3, 5, 7, 53])
@pytest.mark.parametrize("servers", [1, 2, 3, 4, 36])
def test_servers_have_as_many_streams_and_ingresses_few_servers(ingresses: int, servers: int) -> None:
    found = spread(ingresses, servers)
    total = sum(found, Counter[int]())
    assert set(total) == set(range(servers))
    mean = 600 * ingresses / servers
    assert all(abs(count - mean) <= 0.05 * mean + 3 * ingresses / servers + 5 for count in total.values())
    assert sum(len(one) for one in found) < ingresses + servers


@pytest.mark.parametrize("streams", range(1, 12))
def test_the_first_streams_are_spread_already(streams: int) -> None:
    (found,) = spread(1, 3, streams=streams)
    assert max(found.values()) - min(found[server] for server in range(3)) <= 2


def test_all_shards_of_a_home_server_are_used() -> None:
    first, second = spread(2, 2, shards=6)
    assert set(first) == {0, 2, 4}
    assert set(second) == {1, 3, 5}


def test_a_share_of_memory() -> None:
    assert memory_share(b"# Memory\r\nused_memory:50\r\nmaxmemory:200\r\n") == 0.25
    assert memory_share(b"used_memory:50\r\nmaxmemory:0\r\n") == 0.0
