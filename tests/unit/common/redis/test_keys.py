"""Names of keys: shards share a hash tag, nothing collides."""

from __future__ import annotations

import re

import pytest

from common.entries import IngressId, StreamId, WorkerId
from common.redis.keys import Keys


def tag(key: bytes) -> bytes:
    found = re.search(rb"\{(.*?)\}", key)
    assert found is not None
    return found[1]


def test_all_keys_of_a_stream_share_the_tag_of_its_shard() -> None:
    keys = Keys(shards=4)
    for number in range(1, 20):
        stream = keys.stream(StreamId(number))
        shard = number % 4
        assert stream.shard == shard == keys.shard_of(StreamId(number))
        names = [stream.meta, stream.audio, stream.results, stream.snapshot]
        names += [keys.assignments(shard), keys.ready(shard, WorkerId("w"))]
        assert {tag(name) for name in names} == {str(shard).encode()}
        assert len(set(names)) == len(names)


def test_what_the_cluster_has_once_is_on_shard_0() -> None:
    keys = Keys(shards=4)
    names = [
        *(keys.settings, keys.stream_counter, keys.admissions, keys.workers, keys.ingresses),
        *(keys.worker(WorkerId("w")), keys.ingress(IngressId("i")), keys.once("n")),
    ]
    assert {tag(name) for name in names} == {b"0"}
    assert len(set(names)) == len(names)
    assert keys.worker(WorkerId("w")) == keys.worker_hash_stem + b"w"


def test_there_is_a_shard() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Keys(shards=0)
