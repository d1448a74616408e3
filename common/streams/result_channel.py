"""The channel through which results reach an ingress: workers publish to it, the ingress subscribes."""

from __future__ import annotations

from common.entries import IngressId
from common.redis.clients import RedisServers
from common.redis.keys import Keys


def channel_of(
    servers: RedisServers, keys: Keys, server: int, ingress: IngressId
) -> tuple[bytes, bytes, bytes]:
    """How results reach an ingress on one server: command to publish, command to subscribe, channel."""
    if servers.clustered:  # a server is a shard
        return b"SPUBLISH", b"SSUBSCRIBE", keys.shard_channel(ingress, server)
    return b"PUBLISH", b"SUBSCRIBE", keys.channel(ingress)
