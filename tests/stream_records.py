"""Records of streams, as a worker reads them from Redis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common.entries import IngressId, StreamId, WorkerId
from common.options import StreamOptions
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint, StreamRecord
from common.streams.claims import OwnedStream


def stream_record(stream: int = 1, **changes: Any) -> StreamRecord:
    """Return the record of a stream of ingress `i1` that `w1` owns. changes: fields that are different."""
    record = StreamRecord(
        stream=StreamId(stream),
        ingress=IngressId("i1"),
        options=StreamOptions(),
        sample_rate=16_000,
        token_hash="",
        created_ms=0,
        ttl_ms=60_000,
        grace_ms=0,
        owner=WorkerId("w1"),
        epoch=1,
        checkpoint=Checkpoint(),
        finished=False,
    )
    return replace(record, **changes)


def owned_stream(stream: int = 1, keys: Keys | None = None, **changes: Any) -> OwnedStream:
    """Return that stream as its worker owns it, by the first assignment of its shard."""
    return OwnedStream((keys or Keys()).stream(StreamId(stream)), b"1-1", stream_record(stream, **changes), 0)
