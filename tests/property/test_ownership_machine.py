"""Takeover, fencing and resume as a state machine, on the real scripts and a real server.

Workers here decode as plainly as can be: the n-th audio entry gives result n, which says where the entry
began. Any of them may stand still at any point, lose the stream, and go on as if nothing had happened;
the client may lose its connection at any time. What the client reads must be the results 1, 2, 3, ... of
the audio that was accepted, each once, whoever wrote them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import hypothesis.strategies as st
import orjson
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.assignments import Checkpoint, NewStream, StreamDirectory
from common.audio_log import last_audio
from common.audio_reader import AudioReader
from common.claims import POISONOUS_DEATHS, SUSPICIOUS_DEATHS, Claims, OwnedStream, Suspect
from common.entries import AudioEntry, IngressId, Line, LineKind, StreamId, WorkerId
from common.keys import Keys
from common.options import StreamOptions
from common.redis import (
    RESPONSE_ERROR,
    AsyncRedis,
    RedisServers,
    SyncRedis,
    blocking_client,
    blocking_connection,
)
from common.result_log import Position, ResultWriter, StreamWrite, catch_up
from parakeet.embedded_redis import EmbeddedRedis
from tests.servers import make_server, raw_client

_STREAM = StreamId(7)
_SAMPLES = 10
_CHUNK_MS = 1  # an entry is more than a chunk: whatever was read could have been in a step
_WORKERS = 3
_CURRENT = st.sampled_from((True, True, False))  # the owner, or the one before it


@dataclass
class _Worker:
    """One worker's view, right or stale. read: entries that it has and has not decoded."""

    name: WorkerId
    claims: Claims
    reader: AudioReader
    writer: ResultWriter
    owned: OwnedStream | None = None
    read: list[AudioEntry] = field(default_factory=list)
    seq: int = 0
    last: AudioEntry | None = None


class OwnershipMachine(RuleBasedStateMachine):
    """accepted: first samples of the entries that Redis took, in order; the truth."""

    server: EmbeddedRedis

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        servers = RedisServers.parse((self.server.url,))
        self.raw = raw_client(self.server.url)
        self.raw.flushall()
        self.redis = SyncRedis(servers)
        self.connections = [blocking_connection(servers, 0, 10) for _ in range(_WORKERS)]
        self.keys = Keys()
        self.stream = self.keys.stream(_STREAM)
        self.workers = [self._worker(number) for number in range(_WORKERS)]
        self.accepted: list[int] = []
        self.connection = 1
        self.next_seq = 1
        self.client: list[dict[str, int]] = []
        self.position = (0, 0)
        self.owner: _Worker | None = None
        self.stale: _Worker | None = None  # the owner before
        self.takeovers = 0  # since the stream last got on
        self.poison = False

    def _worker(self, number: int) -> _Worker:
        name = WorkerId(f"w{number}")
        return _Worker(
            name,
            Claims(self.redis, self.keys, name, chunk_ms=_CHUNK_MS),
            AudioReader(self.connections[number], self.keys, [0], name),
            ResultWriter(self.redis, self.keys),
        )

    def teardown(self) -> None:
        if self.owner is not None and not self.poison:
            self._let_the_owner_finish()
        self.redis.close()
        for connection in self.connections:
            connection.close()
        self.raw.close()
        self.loop.close()

    def _let_the_owner_finish(self) -> None:
        assert self.owner is not None
        self.read(current=True)
        self.write(current=True, count=len(self.owner.read))
        self.catch_up()
        assert len(self.client) == len(self.accepted)

    # Beginnings

    @initialize()
    def create(self) -> None:
        async def make() -> None:
            redis = AsyncRedis(RedisServers.parse((self.server.url,)))
            new = NewStream(_STREAM, IngressId("i1"), StreamOptions(), 16_000, "", 0, 60_000, 0)
            await StreamDirectory(redis, self.keys).create(new)
            await redis.close()

        self.loop.run_until_complete(make())
        first = self.workers[0]
        first.claims.prepare()
        client = blocking_client(RedisServers.parse((self.server.url,)), 0, 10)
        (entry,) = first.claims.wait(client, [0], 1, None)
        client.close()
        self._opened(first, first.claims.open(entry))

    def _opened(self, worker: _Worker, owned: OwnedStream | Suspect | None) -> None:
        assert isinstance(owned, OwnedStream)
        if owned.poison:
            assert self.takeovers >= SUSPICIOUS_DEATHS + POISONOUS_DEATHS
            self.poison = True
        snapshot = worker.claims.snapshot(owned)
        checkpoint = owned.record.checkpoint
        if checkpoint.samples_decoded:
            # The snapshot is the state after so many results; here the state is their number.
            assert snapshot is not None
            assert int(snapshot) == checkpoint.seq
        worker.owned, worker.seq, worker.read, worker.last = owned, checkpoint.seq, [], None
        self.owner, self.stale = worker, self.owner

    # The client and its ingress

    @precondition(lambda self: not self.poison)
    @rule(repeated=st.booleans())
    def append(self, repeated: bool) -> None:
        entry = AudioEntry(self.connection, self.next_seq, len(self.accepted) * _SAMPLES, b"\0\0" * _SAMPLES)
        assert self._add(entry)
        self.accepted.append(entry.first_sample)
        self.next_seq += 1
        if repeated:  # as after a reply that was lost
            assert not self._add(entry)

    def _add(self, entry: AudioEntry) -> bool:
        try:
            self.raw.execute_command("XADD", self.stream.audio, "NOMKSTREAM", entry.entry_id, *entry.fields())
        except RESPONSE_ERROR as error:
            if "equal or smaller" not in str(error):
                raise
            return False
        return True

    @precondition(lambda self: not self.poison)
    @rule()
    def resume(self) -> None:
        """Another connection goes on where Redis has the audio; the old one can append nothing more."""

        async def attach() -> tuple[int, AudioEntry | None]:
            redis = AsyncRedis(RedisServers.parse((self.server.url,)))
            connection = await StreamDirectory(redis, self.keys).attach(_STREAM, IngressId("i2"))
            last = await last_audio(redis, self.stream)
            await redis.close()
            return connection, last

        old = AudioEntry(self.connection, self.next_seq, 0, b"\1\0")
        connection, last = self.loop.run_until_complete(attach())
        assert connection == self.connection + 1
        if last is not None:
            assert last.first_sample + last.num_samples == len(self.accepted) * _SAMPLES
        self.connection = connection
        self.next_seq = last.seq + 1 if last is not None else 1
        # The new connection's first entry, as `Appender.attach` writes it: audio, for a result of its own.
        self.append(repeated=False)
        assert not self._add(old)

    @rule()
    def catch_up(self) -> None:
        """Read what the results have behind the last line that the client has seen."""

        async def read() -> list[Line]:
            redis = AsyncRedis(RedisServers.parse((self.server.url,)))
            (lines,) = await catch_up(redis, [Position(self.stream, *self.position)])
            await redis.close()
            return lines

        for line in self.loop.run_until_complete(read()):
            assert (line.epoch, line.seq) > self.position or line.kind is LineKind.OWNER
            self.position = (line.epoch, line.seq if line.kind is not LineKind.OWNER else self.position[1])
            if line.kind is LineKind.PARTIAL:
                assert line.seq == len(self.client) + 1
                self.client.append(orjson.loads(line.json))

    # Workers

    @precondition(lambda self: not self.poison)
    @rule(
        step=st.integers(1, _WORKERS - 1), orderly=st.sampled_from((False, False, True)), busy=st.booleans()
    )
    def take_over(self, step: int, orderly: bool, busy: bool) -> None:
        """The owner is taken for dead, rightly or not, or hands over; it keeps what it has in hand.

        busy: it had read what there was.
        """
        before = self.owner
        assert before is not None
        worker = self.workers[(self.workers.index(before) + step) % _WORKERS]
        if busy:
            self.read(current=True)
        assert before.owned is not None
        if orderly:
            before.claims.let_go([before.owned], cleared=False)
        else:
            self.takeovers += 1
        (entry,) = worker.claims.pending_of(before.name, 5)
        opened = worker.claims.open(entry)
        if isinstance(opened, Suspect):
            assert self.takeovers >= SUSPICIOUS_DEATHS
            opened = worker.claims.open(entry, together=1)
        self._opened(worker, opened)
        assert before.claims.still_owned([before.owned]) == [False]

    @rule(current=_CURRENT)
    def read(self, current: bool) -> None:
        worker = self.owner if current else self.stale
        if worker is None or worker.owned is None:
            return
        for batch in worker.reader.read([(self.stream, worker.owned.epoch)], 100):
            assert batch.lost == (worker is not self.owner)
            worker.read += batch.entries

    @rule(current=_CURRENT, count=st.integers(1, 4))
    def write(self, current: bool, count: int) -> None:
        """Decode some entries and write their results; a stale worker is refused."""
        worker = self.owner if current else self.stale
        owned = worker.owned if worker is not None else None
        if worker is None or owned is None or (worker is self.owner and self.poison):
            return
        write = StreamWrite(self.stream, owned.epoch, IngressId("i1"))
        entries, worker.read = worker.read[:count], worker.read[count:]
        for entry in entries:
            worker.seq += 1
            worker.last = entry
            write.acked.append(entry.entry_id)
            if worker.seq > owned.last_seq:
                json = orjson.dumps({"seq": worker.seq, "at": entry.first_sample})
                write.lines.append(Line(LineKind.PARTIAL, _STREAM, owned.epoch, worker.seq, json))
        (outcome,) = worker.writer.write([write])
        assert not outcome.gone
        if write.lines:
            assert outcome.fenced == (worker is not self.owner)
        if write.lines and worker is self.owner:
            self.takeovers = 0

    @rule(current=_CURRENT)
    def checkpoint(self, current: bool) -> None:
        worker = self.owner if current else self.stale
        if worker is None or worker.owned is None or worker.last is None:
            return
        end = worker.last.first_sample + worker.last.num_samples
        point = Checkpoint(worker.last.entry_id, end, worker.seq)
        command = worker.claims.checkpoint_command(worker.owned, point, b"%d" % worker.seq)
        assert self.raw.execute_command(*command) == int(worker is self.owner)

    # Promises

    @invariant()
    def client_has_the_results_of_the_audio(self) -> None:
        assert [result["at"] for result in self.client] == self.accepted[: len(self.client)]
        assert [result["seq"] for result in self.client] == list(range(1, len(self.client) + 1))

    @invariant()
    def there_is_one_audio_group(self) -> None:
        groups = self.raw.xinfo_groups(self.stream.audio) if self.raw.exists(self.stream.audio) else []
        assert len(groups) <= 1


def test_ownership_machine() -> None:
    server = make_server("embedded")
    server.start()
    try:
        OwnershipMachine.server = server
        machine = OwnershipMachine.TestCase
        machine.settings = settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        machine().runTest()
    finally:
        server.stop()
