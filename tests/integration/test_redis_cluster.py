"""Shards on a real Redis Cluster: each on its node, found again when its slot moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis.exceptions

from common.entries import IngressId
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis
from common.redis.keys import Keys
from common.redis.pipelined import pack
from common.streams.result_channel import channel_of
from common.streams.result_reader import Published, ResultSubscription, Subscribed
from tests.redis_cluster import NUM_NODES, RedisCluster, redis_cluster

SHARDS = 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with redis_cluster() as started:
        yield started


@pytest.fixture
def servers(cluster: RedisCluster) -> RedisServers:
    return RedisServers.parse((cluster.url,), SHARDS, timeout_ms=2000)


def test_each_shard_is_a_server_on_the_node_of_its_slot(servers: RedisServers, cluster: RedisCluster) -> None:
    sync = SyncRedis(servers)
    try:
        assert servers.num_servers == SHARDS
        for shard in range(SHARDS):
            key = b"px:{%d}:k" % shard
            assert sync.pipelined(shard).call([pack(b"SET", key, b"%d" % shard)]) == [b"OK"]
            assert sync.shard(shard).execute_command("GET", key) == b"%d" % shard
        held = [sum(1 for _ in cluster.client(n).scan_iter("px:*:k")) for n in range(NUM_NODES)]
        assert sum(held) == SHARDS
        assert min(held) > 0
    finally:
        sync.close()


async def test_clients_of_both_kinds_follow_a_slot_that_moves(
    servers: RedisServers, cluster: RedisCluster
) -> None:
    sync, client = SyncRedis(servers), AsyncRedis(servers)
    shard = 1
    key = b"px:{%d}:moving" % shard
    slot = servers.addresses[shard].slot
    source = min(slot * NUM_NODES // 16384, NUM_NODES - 1)
    target = (source + 1) % NUM_NODES
    try:
        thread = sync.pipelined(shard)
        assert thread.call([pack(b"SET", key, b"1")]) == [b"OK"]
        assert await client.pipelined(shard).execute(b"GET", key) == b"1"
        assert await client.shard(shard).execute_command("GET", key) == b"1"
        cluster.move_slot(slot, source, target)
        # The thread's connection and the clients look again by themselves; the event loop's fails
        # what was under way, as for any lost connection, and is right with the next command.
        assert thread.call([pack(b"INCR", key)]) == [2]
        assert sync.shard(shard).execute_command("GET", key) == b"2"
        assert await client.shard(shard).execute_command("GET", key) == b"2"
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.pipelined(shard).execute(b"GET", key)
        assert await client.pipelined(shard).execute(b"GET", key) == b"2"
    finally:
        cluster.move_slot(slot, target, source)
        sync.close()
        await client.close()


async def test_results_travel_by_sharded_pub_sub(servers: RedisServers, cluster: RedisCluster) -> None:
    keys = Keys(SHARDS)
    sync = SyncRedis(servers)
    ingress = IngressId("i-1")
    try:
        for shard in range(SHARDS):
            publish, _, channel = channel_of(servers, keys, shard, ingress)
            assert publish == b"SPUBLISH"
            events = ResultSubscription(servers, keys, shard, ingress).events()
            assert await anext(events) == Subscribed(shard)
            line = b'p %d 1 1 {"seq":1}' % shard
            assert sync.pipelined(shard).call([pack(publish, channel, line)]) == [1]
            published = await anext(events)
            assert isinstance(published, Published)
            assert [(found.stream, found.seq) for found in published.lines] == [(shard, 1)]
            await events.aclose()  # type: ignore[attr-defined]
    finally:
        sync.close()


async def test_a_subscription_is_made_again_where_its_shard_has_moved(
    servers: RedisServers, cluster: RedisCluster
) -> None:
    shard = 2
    slot = servers.addresses[shard].slot
    source = min(slot * NUM_NODES // 16384, NUM_NODES - 1)
    target = (source + 1) % NUM_NODES
    events = ResultSubscription(servers, Keys(SHARDS), shard, IngressId("i-2")).events()
    try:
        assert await anext(events) == Subscribed(shard)
        cluster.move_slot(slot, source, target)
        assert await anext(events) == Subscribed(shard)
        held = cluster.client(target).execute_command("PUBSUB", "SHARDNUMSUB", f"px:{{{shard}}}:in:i-2")
        assert held[1] == 1
    finally:
        await events.aclose()  # type: ignore[attr-defined]
        cluster.move_slot(slot, target, source)


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        (("redis+cluster://a:1", "redis://b:2"), "one address"),
        (("redis+cluster://a:1/3",), "one database"),
    ],
)
def test_addresses_that_make_no_cluster(urls: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        RedisServers.parse(urls)
