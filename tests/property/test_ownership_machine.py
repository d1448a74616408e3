"""Takeover, fencing and resume as a state machine, on the real scripts and a real server.

Workers here decode as plainly as can be: the n-th audio entry gives result n, which says where the entry
began. Any of them may stand still at any point, lose the stream, and go on as if nothing had happened;
the client may lose its connection at any time. What the client reads must be the results 1, 2, 3, ... of
the audio that was accepted, each once, whoever wrote them.

Beside it runs a model of what Redis must know: where a replay begins, the last result that was written,
and who may have died of the stream (`_Suspicion`). Each owner is compared with it as it opens the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from common.entries import (
    AudioEntry,
    IngressId,
    Line,
    LineKind,
    StreamId,
    WorkerId,
    audio_entry_id,
    decode_audio_entry,
)
from common.options import StreamOptions
from common.redis.clients import (
    RESPONSE_ERROR,
    AsyncRedis,
    RedisServers,
    SyncRedis,
    blocking_client,
    blocking_connection,
)
from common.redis.keys import Keys
from common.redis.scripts.ownership import POISONOUS_DEATHS, SUSPECTS_DIVISOR, SUSPICIOUS_DEATHS
from common.streams.assignments import Checkpoint, NewStream, StreamDirectory
from common.streams.audio_tail import audio_tail
from common.streams.claims import (
    MAX_SUSPECTS,
    Claims,
    Opening,
    OwnedStream,
    Suspect,
)
from common.streams.result_reader import Position, catch_up, kept_results
from common.streams.result_writer import ResultWriter
from gpu_worker.pipeline.intake import AudioReader
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.servers import keys_without_expiry, make_server, raw_client

_STREAM = StreamId(7)
_SAMPLES = 20
_CHUNK_MS = 1  # an entry is more than a chunk: whatever was read could have been in a step
_WORKERS = 3
_CURRENT = st.sampled_from((True, True, False))  # the owner, or the one before it
# What may happen: how often beside the others, whether only to a stream that goes on, and with what. Drawn
# by one rule: hypothesis's own choice leaves whole kinds out of most runs, and what is looked for here
# takes several kinds in one run.
_EVENTS: dict[str, tuple[int, bool, dict[str, st.SearchStrategy[Any]]]] = {
    "append": (1, True, {"repeated": st.booleans()}),
    "get_on": (4, True, {"count": st.integers(1, 4), "decoded": st.integers(0, 4), "kept": st.booleans()}),
    "resume": (1, True, {}),
    "catch_up": (1, False, {}),
    "take_over": (
        *(5, True),
        {
            "step": st.integers(1, _WORKERS - 1),
            "how": st.sampled_from(("dies", "dies", "dies", "lets go", "clears")),
            "busy": st.sampled_from((True, True, False)),
            "share": st.floats(0, 1),
        },
    ),
    "read": (2, False, {"current": _CURRENT}),
    "write": (2, False, {"current": _CURRENT, "count": st.integers(1, 4)}),
    "checkpoint": (2, False, {"current": _CURRENT}),
    "finish": (1, False, {"current": st.sampled_from((False,) * 11 + (True,))}),
}


def _results(lines: Sequence[Line]) -> list[Line]:
    """The lines that are no notices of owners."""
    return [line for line in lines if line.kind is not LineKind.OWNER]


@dataclass
class _Suspicion:
    """Who may have died of the stream. died_to: number of the last entry that a dead owner had in hand."""

    died_to: int | None = None
    deaths: int = 0
    alone: int = 0
    within: int = MAX_SUSPECTS

    def died(self, in_hand: list[int], together: int) -> None:
        """An owner died with these entries in hand."""
        if not in_hand:
            return
        if self.died_to is None or in_hand[0] > self.died_to:
            self.deaths, self.alone, self.within = 0, 0, MAX_SUSPECTS
        self.died_to = in_hand[-1]
        self.deaths += 1
        if together == 1:
            self.alone += 1
        elif together:
            self.within = max(1, together // SUSPECTS_DIVISOR)

    @property
    def poison(self) -> bool:
        return self.alone >= POISONOUS_DEATHS

    @property
    def suspect(self) -> bool:
        return self.deaths >= SUSPICIOUS_DEATHS and not self.poison


@dataclass
class _Worker:
    """One worker's view, right or stale. read: entries that it has and has not decoded.

    together: suspects that its process runs with this one.
    """

    name: WorkerId
    claims: Claims
    reader: AudioReader
    writer: ResultWriter
    owned: OwnedStream | None = None
    read: list[AudioEntry] = field(default_factory=list)
    seq: int = 0
    last: AudioEntry | None = None
    together: int = 0


class OwnershipMachine(RuleBasedStateMachine):
    """accepted: first samples of the entries that Redis took, in order; the truth.

    written: results that Redis took. kept_from: number of the first entry that a replay needs.
    """

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
        self.written = 0
        self.kept_from = 0
        self.suspicion = _Suspicion()
        self.poison = False
        self.finished = False

    def _worker(self, number: int) -> _Worker:
        name = WorkerId(f"w{number}")
        return _Worker(
            name,
            Claims(self.redis, self.keys, name, chunk_ms=_CHUNK_MS),
            AudioReader(self.connections[number], self.keys, [0], name),
            ResultWriter(self.redis, self.keys),
        )

    def teardown(self) -> None:
        if self.owner is not None and not self.poison and not self.finished:
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
        self.finish(current=True)

    @property
    def runs(self) -> bool:
        """Whether the stream goes on."""
        return not self.poison and not self.finished

    @rule(
        name=st.sampled_from([name for name, (often, _, _) in _EVENTS.items() for _ in range(often)]),
        data=st.data(),
    )
    def happen(self, name: str, data: st.DataObject) -> None:
        """One of the events."""
        _, needs_life, drawn = _EVENTS[name]
        if self.runs or not needs_life:
            getattr(self, name)(**{what: data.draw(value, label=what) for what, value in drawn.items()})

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
        self._opened(first, first.claims.open([entry])[0])

    def _opened(self, worker: _Worker, owned: Opening) -> None:
        assert isinstance(owned, OwnedStream)
        assert owned.poison == self.suspicion.poison
        self.poison = owned.poison
        assert owned.epoch == (self.owner.owned.epoch + 1 if self.owner and self.owner.owned else 1)
        assert owned.last_seq == self.written
        assert owned.record.checkpoint.seq == self.kept_from
        stored = worker.claims.snapshots([owned])[0]
        checkpoint = owned.record.checkpoint
        if checkpoint.samples_decoded:
            # The snapshot is the state after so many results; here the state is their number.
            assert stored is not None
            assert stored.snapshot is not None
            assert int(stored.snapshot) == checkpoint.seq
        worker.owned, worker.seq, worker.read, worker.last = owned, checkpoint.seq, [], None
        worker.together = 0
        self.owner, self.stale = worker, self.owner

    # The client and its ingress

    def append(self, repeated: bool) -> None:
        entry = AudioEntry(
            audio_entry_id(self.connection, self.next_seq), len(self.accepted) * _SAMPLES, b"\0\0" * _SAMPLES
        )
        assert self._add(entry)
        self.accepted.append(entry.first_sample)
        self.next_seq += 1
        if repeated:  # as after a reply that was lost
            assert not self._add(entry)

    def get_on(self, count: int, decoded: int, kept: bool) -> None:
        """What happens nearly always: audio comes, the owner reads it, and decodes some of it.

        kept: it also makes a checkpoint.
        """
        for _ in range(count):
            self.append(repeated=False)
        self.read(current=True)
        if decoded:
            self.write(current=True, count=decoded)
        if kept:
            self.checkpoint(current=True)

    def _add(self, entry: AudioEntry) -> bool:
        try:
            self.raw.execute_command("XADD", self.stream.audio, "NOMKSTREAM", entry.entry_id, *entry.fields())
        except RESPONSE_ERROR as error:
            if "equal or smaller" not in str(error):
                raise
            return False
        return True

    def resume(self) -> None:
        """Another connection goes on where Redis has the audio; the old one can append nothing more."""

        async def attach() -> tuple[int, AudioEntry | None]:
            redis = AsyncRedis(RedisServers.parse((self.server.url,)))
            connection = await StreamDirectory(redis, self.keys).attach(_STREAM, IngressId("i2"))
            last = (await audio_tail(redis, self.stream)).last
            await redis.close()
            return connection, last

        old = AudioEntry(audio_entry_id(self.connection, self.next_seq), 0, b"\1\0")
        connection, last = self.loop.run_until_complete(attach())
        assert connection == self.connection + 1
        if last is not None:
            assert last.first_sample + last.num_samples == len(self.accepted) * _SAMPLES
        self.connection = connection
        self.next_seq = last.seq + 1 if last is not None else 1
        # The new connection's first entry, as `Appender.attach` writes it: audio, for a result of its own.
        self.append(repeated=False)
        assert not self._add(old)

    def catch_up(self) -> None:
        """Read what the results have behind the last line that the client has seen."""

        async def read() -> list[Line]:
            redis = AsyncRedis(RedisServers.parse((self.server.url,)))
            (missed,) = await catch_up(redis, [Position(self.stream, *self.position)])
            # One who resumes knows the number of its last result alone, and must come to the same ones.
            kept = await kept_results(redis, self.stream, len(self.client))
            assert kept is not None or not missed.lines
            if kept is not None:
                (resumed,) = await catch_up(redis, [kept.position])
                assert _results(resumed.lines) == _results(missed.lines)
            await redis.close()
            return list(missed.lines)

        for line in self.loop.run_until_complete(read()):
            assert (line.epoch, line.seq) > self.position or line.kind is LineKind.OWNER
            self.position = (line.epoch, line.seq if line.kind is not LineKind.OWNER else self.position[1])
            if line.kind is LineKind.PARTIAL:
                assert line.seq == len(self.client) + 1
                self.client.append(orjson.loads(line.body))

    # Workers

    def take_over(self, step: int, how: str, busy: bool, share: float) -> None:
        """The owner is taken for dead, rightly or not, or hands over; it keeps what it has in hand.

        busy: it had read what there was. share: of the suspects that may run together with this one.
        """
        before = self.owner
        assert before is not None
        worker = self.workers[(self.workers.index(before) + step) % _WORKERS]
        if busy:
            self.read(current=True)
        assert before.owned is not None
        if how == "dies":
            in_hand = [entry.first_sample // _SAMPLES for entry in before.read]
            self.suspicion.died(in_hand, before.together)
        else:
            before.claims.let_go([before.owned], cleared=how == "clears")
            if how == "clears":
                self.suspicion = _Suspicion()
        (entry,) = worker.claims.pending_of(before.name, 5)
        assert before.claims.pending_of(before.name, 5) == []
        assert before.claims.open([entry]) == [None], "it is another's"
        together = 0
        (opened,) = worker.claims.open([entry])
        assert isinstance(opened, Suspect) == self.suspicion.suspect
        if isinstance(opened, Suspect):
            assert isinstance(worker.claims.open([entry])[0], Suspect), (
                "to be asked twice makes no difference"
            )
            (most,) = worker.claims.within([entry])
            assert most == self.suspicion.within
            together = max(1, round(share * most))
            opened = worker.claims.open([entry], together)[0]
        self._opened(worker, opened)
        worker.together = together
        assert before.claims.still_owned([before.owned]) == [False]

    def read(self, current: bool) -> None:
        worker = self.owner if current else self.stale
        if worker is None or worker.owned is None:
            return
        for _, entries in worker.reader.read([(self.stream, worker.owned.epoch)], 100):
            assert (entries is None) == (worker is not self.owner or self.finished)
            worker.read += [decode_audio_entry(*entry) for entry in entries or ()]
        if worker is self.owner and not self.finished:
            in_hand = [entry.first_sample for entry in worker.read]
            assert in_hand == self.accepted[worker.seq :], "all that is not decoded, once"

    def write(self, current: bool, count: int) -> None:
        """Decode some entries and write their results; a stale worker is refused."""
        worker = self.owner if current else self.stale
        owned = worker.owned if worker is not None else None
        if worker is None or owned is None or (worker is self.owner and not self.runs):
            return
        batch = worker.writer.batch()
        said = False
        entries, worker.read = worker.read[:count], worker.read[count:]
        for entry in entries:
            worker.seq += 1
            worker.last = entry
            batch.acknowledge(owned, [entry.entry_id])
            if worker.seq > owned.last_seq:
                json = orjson.dumps({"seq": worker.seq, "at": entry.first_sample})
                acked = entry.first_sample + entry.num_samples
                batch.say(owned, IngressId("i1"), LineKind.PARTIAL, worker.seq, acked, json)
                said = True
        lost = worker.writer.write(batch).lost
        if said:
            assert lost == ([] if worker is self.owner else [owned])
            if worker is self.owner:
                self.written = worker.seq

    def checkpoint(self, current: bool) -> None:
        worker = self.owner if current else self.stale
        if worker is None or worker.owned is None or worker.last is None or self.finished:
            return
        end = worker.last.first_sample + worker.last.num_samples
        point = Checkpoint(worker.last.entry_id, end, worker.seq)
        commands = worker.claims.checkpoint_commands(worker.owned, point, b"%d" % worker.seq)
        *_, stored = (self.raw.execute_command(*command) for command in commands)
        assert stored == int(worker is self.owner)
        if worker is self.owner:
            self.kept_from = worker.seq

    def finish(self, current: bool) -> None:
        """The stream's end; of no effect when a stale worker says so."""
        worker = self.owner if current else self.stale
        if worker is None or worker.owned is None or self.finished:
            return
        keys = (self.stream.audio, self.stream.snapshot)
        before = [self.raw.exists(key) for key in keys]
        outcome = self.raw.execute_command(*worker.claims.finish_command(worker.owned))
        assert outcome == int(worker is self.owner)
        if worker is not self.owner:
            assert [self.raw.exists(key) for key in keys] == before
            return
        self.finished = True
        assert [self.raw.exists(key) for key in keys] == [0, 0]
        assert self.raw.xlen("px:{0}:new") == 0
        for other in self.workers:
            assert other.claims.owners()[worker.name] == 0

    # Promises

    @invariant()
    def client_has_the_results_of_the_audio(self) -> None:
        assert [result["at"] for result in self.client] == self.accepted[: len(self.client)]
        assert [result["seq"] for result in self.client] == list(range(1, len(self.client) + 1))

    @invariant()
    def there_is_one_audio_group(self) -> None:
        groups = self.raw.xinfo_groups(self.stream.audio) if self.raw.exists(self.stream.audio) else []
        assert len(groups) == int(self.owner is not None and not self.finished)

    @invariant()
    def audio_is_kept_from_the_checkpoint_on(self) -> None:
        if self.finished:
            return
        kept = [int(fields[b"o"]) for _, fields in self.raw.xrange(self.stream.audio)]
        assert kept == self.accepted[self.kept_from :]

    @invariant()
    def every_key_has_a_time_to_live(self) -> None:
        assert keys_without_expiry(self.raw) == []


# A failure is made small for up to five minutes.
@pytest.mark.timeout(600)
def test_ownership_machine() -> None:
    server = make_server("embedded")
    server.start()
    try:
        OwnershipMachine.server = server
        machine = OwnershipMachine.TestCase
        machine.settings = settings(
            max_examples=60,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        )
        machine().runTest()
    finally:
        server.stop()
