"""All keys and channels in Redis, and how long each may live without its owner.

A key's braces hold its shard: `{0}` for keys of the whole cluster, `{k}` with k = stream id modulo the number
of shards for the keys of a stream. Keys of one shard live on one server, so one multi-key command or script
serves a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from common.entries import IngressId, StreamId, WorkerId

DEFAULT_PREFIX: Final = "px"

ASSIGNMENT_GROUP: Final = b"workers"

# Heartbeats and renewals of leases write worker hashes anew.
WORKER_HASH_TTL_MS: Final = 10_000
INGRESS_HASH_TTL_MS: Final = 10_000
# The last results of a stream are kept this long for an ingress that reads late, or a client that comes back.
FINISHED_STREAM_TTL_MS: Final = 30_000
# A repeated request for an admission, whose first answer was lost, finds it within this time.
ONCE_TTL_MS: Final = 30_000
# A poison stream is kept this long for examination.
DEAD_LETTER_TTL_MS: Final = 3600 * 1000
# The served model outlives the last worker's lease, so that no worker comes back to another model.
SERVED_MODEL_LEAST_TTL_MS: Final = 10_000
# Registers live as long as a process renews them; a day covers any pause of the whole cluster.
REGISTER_TTL_MS: Final = 24 * 3600 * 1000
# The counter of stream ids outlives a long pause, so that no id is used twice.
COUNTER_TTL_MS: Final = 30 * 24 * 3600 * 1000
# A ready set belongs to its worker, which removes it; this bounds the life of a killed worker's set.
READY_TTL_MS: Final = 60_000

# A snapshot is written in less than a second; the part of one that a dead worker left expires this soon.
STAGED_SNAPSHOT_TTL_MS: Final = 30_000

# Bounds of a stream's log of results in results and in bytes; the first one that is reached counts. Redis
# trims whole nodes of some KiB and its allocator rounds up: the log takes up to 128 KiB of memory.
RESULTS_MAX_LENGTH: Final = 256
RESULTS_MAX_BYTES: Final = 80 << 10


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """The keys of one stream, built once and kept beside it.

    meta: HASH of the record (common/streams/assignments.py).      audio: STREAM of AudioEntry.
    results: STREAM of results, id `<epoch>-<seq>`.         text: STRING, the kept text (kept_text.py).
    snapshot: LIST, pieces of the engine's state.
    dead: HASH, the facts of a poison stream. dead_audio: STREAM, the audio that ended its owners.
    """

    stream: StreamId
    shard: int
    meta: bytes
    audio: bytes
    results: bytes
    text: bytes
    snapshot: bytes
    dead: bytes
    dead_audio: bytes

    @property
    def renewed(self) -> tuple[bytes, ...]:
        """The keys that live as long as the stream is renewed; the first one exists as long as the stream."""
        return (self.meta, self.audio, self.results, self.text, self.snapshot)

    def staged_snapshot(self, epoch: int, number: int) -> bytes:
        """LIST, the pieces of a snapshot that the owner with this epoch is writing, by its number."""
        return b"%b:%d-%d" % (self.snapshot, epoch, number)


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of all keys.

    shards: number of shards, the same in the whole cluster.
    """

    shards: int = 1
    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ValueError("there is at least one shard")

    # The cluster, on shard 0

    @property
    def settings(self) -> bytes:
        """HASH of the settings that all processes of the cluster share."""
        return self._cluster("conf")

    @property
    def served_model(self) -> bytes:
        """HASH of the model that all workers of the cluster run (common/presence/served_model.py)."""
        return self._cluster("model")

    @property
    def stream_counter(self) -> bytes:
        """STRING, the last stream id."""
        return self._cluster("sid")

    @property
    def counter_run(self) -> bytes:
        """STRING, the server's run in which the last stream id was assigned."""
        return self._cluster("run")

    @property
    def admissions(self) -> bytes:
        """ZSET, stream id -> when its admission lapses (ms of the server's clock)."""
        return self._cluster("adm")

    def once(self, nonce: str) -> bytes:
        """Return the key of a STRING: the answer to the request with this nonce, for a repeat."""
        return self._cluster(f"once:{nonce}")

    @property
    def workers(self) -> bytes:
        """ZSET, worker id -> when its lease lapses (ms of the server's clock)."""
        return self._cluster("workers")

    def worker(self, worker: WorkerId) -> bytes:
        """HASH of a worker's counters, gauges and timings."""
        return self._cluster(f"w:{worker}")

    @property
    def worker_hash_stem(self) -> bytes:
        """The part of a `worker` key before the worker id, for scripts."""
        return self._cluster("w:")

    @property
    def ingresses(self) -> bytes:
        """ZSET, ingress id -> when it counts as gone (ms of the server's clock)."""
        return self._cluster("ingresses")

    def ingress(self, ingress: IngressId) -> bytes:
        """HASH of an ingress."""
        return self._cluster(f"i:{ingress}")

    def key_streams(self, key: str) -> bytes:
        """HASH: number of streams of an API key, by ingress."""
        return self._cluster(f"key:{key}:streams")

    def key_minutes(self, key: str) -> bytes:
        """Stem of counters: streams that an API key has begun; the number of the minute follows."""
        return self._cluster(f"key:{key}:minute:")

    def key_days(self, key: str) -> bytes:
        """Stem of counters: seconds of audio of an API key; the number of the day follows."""
        return self._cluster(f"key:{key}:day:")

    def key_report(self, key: str, ingress: IngressId) -> bytes:
        """Return the key of a STRING: the name of an ingress's last report of an API key's audio."""
        return self.once(f"{key}:{ingress}")

    @property
    def status_line(self) -> bytes:
        """STRING, the latest status line (common/presence/status.py)."""
        return self._cluster("status")

    @property
    def status_turn(self) -> bytes:
        """STRING that exists while a process makes the status line."""
        return self._cluster("status-turn")

    @property
    def ingress_hash_stem(self) -> bytes:
        """The part of an `ingress` key before the ingress id, for scripts."""
        return self._cluster("i:")

    def _cluster(self, name: str) -> bytes:
        return f"{self.prefix}:{{0}}:{name}".encode()

    # A shard

    def shard_of(self, stream: StreamId) -> int:
        """Return the shard of a stream."""
        return stream % self.shards

    def assignments(self, shard: int) -> bytes:
        """STREAM of assignments with the group `workers`; pending = owned."""
        return f"{self.prefix}:{{{shard}}}:new".encode()

    def ready(self, shard: int, worker: WorkerId) -> bytes:
        """ZSET of a worker's streams with unread audio."""
        return f"{self.prefix}:{{{shard}}}:ready:{worker}".encode()

    def stream(self, stream: StreamId) -> StreamKeys:
        """Return the keys of a stream."""
        shard = stream % self.shards
        stem = f"{self.prefix}:{{{shard}}}:{stream}:"
        return StreamKeys(
            stream,
            shard,
            meta=f"{stem}m".encode(),
            audio=f"{stem}a".encode(),
            results=f"{stem}r".encode(),
            text=f"{stem}t".encode(),
            snapshot=f"{stem}s".encode(),
            dead=f"{stem}dead".encode(),
            dead_audio=f"{stem}dead-audio".encode(),
        )

    # Channels

    def channel(self, ingress: IngressId) -> bytes:
        """Return the pub/sub channel of an ingress; every server of the cluster has it for its own shards."""
        return f"{self.prefix}:in:{ingress}".encode()


@lru_cache(maxsize=256)
def audio_group(epoch: int) -> bytes:
    """Return the consumer group of a stream's audio while its owner has this epoch.

    Each owner has a group of its own, and destroys its predecessor's: a worker that lost the stream
    without noticing gets NOGROUP, and can take no entry away from the new owner.
    """
    return b"asr-%d" % epoch


def result_entry_id(epoch: int, seq: int) -> bytes:
    """Return the id of an entry of a stream's results."""
    return b"%d-%d" % (epoch, seq)
