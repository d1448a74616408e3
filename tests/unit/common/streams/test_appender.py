"""Audio on its way into Redis: every entry is written as redis would have it, and read as it was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import hiredis
import pytest

from common.entries import AudioEntry, Bytes, IngressId, StreamId, WorkerId, decode_audio_entry
from common.errors import RedisUnavailable, Unavailable
from common.messages import Audio, Encoding, Phrases
from common.phrases import Phrase
from common.redis.connect import pack
from common.redis.keys import Keys
from common.streams.appender import MAX_ENTRY_BYTES, MAX_KEPT_BYTES, Appender
from common.streams.audio_log import ServerLog

_KEYS = Keys(4).stream(StreamId(7))


class _Log:
    """Notes what an appender tells its log."""

    def __init__(self) -> None:
        self.queued_audio: list[Audio | None] = []
        self.announced = 0
        self.asked_to_look = 0

    def queued(self, appender: Appender, audio: Audio | None) -> None:
        self.queued_audio.append(audio)

    def announce(self, appender: Appender) -> None:
        self.announced += 1

    def suspect_loss(self) -> None:
        self.asked_to_look += 1

    def ready_key(self, shard: int, owner: WorkerId) -> bytes:
        return b"ready:%d:%b" % (shard, owner.encode())


def _appender(
    failures: list[Unavailable] | None = None,
    keep_s: float = 0.0,
    origin: Callable[[], bytes] | None = None,
) -> tuple[Appender, _Log]:
    log = _Log()
    told = failures if failures is not None else []
    return Appender(cast(ServerLog, log), _KEYS, 2, 5, 100, told.append, keep_s, origin), log


def _words(parts: list[Bytes]) -> list[list[bytes]]:
    """The commands of a RESP stream, cut into their words as a server does."""
    reader = hiredis.Reader()
    for part in parts:
        reader.feed(bytes(part))
    found: list[list[bytes]] = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


def _committed(appender: Appender) -> list[AudioEntry]:
    """What is in Redis once everything that is queued was committed."""
    entries: list[AudioEntry] = []
    while True:
        parts: list[Bytes] = []
        if not appender.write_next(parts):
            return entries
        ((command, key, option, entry_id, *fields),) = _words(parts)
        assert (command, key, option) == (b"XADD", _KEYS.audio, b"NOMKSTREAM")
        entries.append(decode_audio_entry(entry_id, fields))
        appender.committed()


def test_entries_are_numbered_and_placed() -> None:
    appender, _ = _appender()
    for size in (2, 320, 5120):
        appender.append(Audio(b"\1\2" * (size // 2)))
        (entry,) = _committed(appender)
        assert (entry.connection, entry.payload, entry.final) == (2, b"\1\2" * (size // 2), False)
    assert (entry.seq, entry.first_sample) == (7, 100 + 1 + 160)
    assert (appender.next_seq, appender.first_sample) == (8, 100 + 1 + 160 + 2560)
    assert appender.pending_bytes == 0
    assert appender.idle


def test_what_queues_during_a_commit_becomes_one_entry_of_one_encoding() -> None:
    appender, _ = _appender()
    for audio in (
        Audio(b"aa"),
        Audio(b"bbbb"),
        Audio(b"\0\0\0\0", Encoding.F32),
        Audio(b"", final=True),
    ):
        appender.append(audio)
    first, second = _committed(appender)
    assert (first.payload, first.encoding, first.first_sample) == (b"aabbbb", Encoding.PCM16, 100)
    assert (second.payload, second.encoding, second.first_sample) == (b"\0\0\0\0", Encoding.F32, 103)
    assert (first.final, second.final) == (False, True)


def test_a_mark_of_another_ingress_stands_alone_and_in_its_place() -> None:
    appender, log = _appender()
    appender.append(Audio(b"aa"))
    appender.attach(IngressId("i-9"))
    appender.append(Audio(b"bb"))
    entries = _committed(appender)
    assert [(entry.payload, entry.ingress) for entry in entries] == [
        (b"aa", None),
        (b"", "i-9"),
        (b"bb", None),
    ]
    assert [entry.first_sample for entry in entries] == [100, 101, 101]
    assert log.queued_audio[1] is None


@pytest.mark.parametrize("final", [False, True])
def test_a_long_message_becomes_several_entries(final: bool) -> None:
    appender, _ = _appender()
    payload = bytes(range(256)) * (MAX_ENTRY_BYTES // 256) + b"\7\7"
    appender.append(Audio(payload, final=final))
    entries = _committed(appender)
    assert b"".join(bytes(entry.payload) for entry in entries) == payload
    assert [entry.final for entry in entries] == [False, final]
    assert [entry.first_sample for entry in entries] == [100, 100 + MAX_ENTRY_BYTES // 2]


def test_an_entry_that_was_not_committed_is_written_again_as_it_was() -> None:
    appender, _ = _appender()
    appender.append(Audio(b"aa"))
    first: list[Bytes] = []
    again: list[Bytes] = []
    assert appender.write_next(first)
    appender.append(Audio(b"bb"))
    assert appender.write_next(again)
    assert first == again
    assert appender.committed()
    (entry,) = _committed(appender)
    assert entry.payload == b"bb"


def test_an_owner_is_told_once_and_where() -> None:
    appender, log = _appender()
    appender.append(Audio(b"aa"))
    assert log.announced == 0
    appender.set_owner(WorkerId("w-1"))
    appender.set_owner(WorkerId("w-1"))
    assert (appender.ready, log.announced) == (b"ready:3:w-1", 1)


async def test_a_failure_is_told_once_and_wakes_who_waits_for_room() -> None:
    failures: list[Unavailable] = []
    appender, _ = _appender(failures)
    appender.append(Audio(b"a" * 1000))
    error = RedisUnavailable("away")
    appender.fail(error)
    appender.fail(RedisUnavailable("again"))
    assert failures == [error]
    assert appender.pending_bytes == 0
    with pytest.raises(RedisUnavailable):
        await appender.room(0)
    with pytest.raises(RedisUnavailable):
        appender.append(Audio(b"aa"))


@pytest.mark.parametrize(
    ("last", "forgotten"),
    [(b"2-7", []), (b"2-6", [7]), (b"2-4", [5, 6, 7]), (b"0-0", [5, 6, 7]), (b"3-1", [])],
)
def test_what_redis_took_and_forgot_is_written_again_as_it_was(last: bytes, forgotten: list[int]) -> None:
    appender, _ = _appender(keep_s=60.0)
    appender.append(Audio(b"aa"))
    entries = _committed(appender)
    appender.append(Audio(b"\0\0\0\0", Encoding.F32))
    entries += _committed(appender)
    appender.append(Audio(b"bb", final=True))
    entries += _committed(appender)
    assert appender.keeps
    parts: list[Bytes] = []
    assert appender.write_forgotten(last, parts) == len(forgotten)
    again = [decode_audio_entry(words[3], words[4:]) for words in _words(parts)]
    assert again == [entry for entry in entries if entry.seq in forgotten]


def test_what_is_kept_is_bounded_in_time_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("common.streams.appender.time.monotonic", lambda: now[0])
    appender, _ = _appender(keep_s=3.0)
    for now[0] in (100.0, 102.0, 103.5):
        appender.append(Audio(b"aa"))
        _committed(appender)
    assert appender.write_forgotten(b"0-0", []) == 2
    for _ in range(2 * MAX_KEPT_BYTES // MAX_ENTRY_BYTES):
        appender.append(Audio(b"\1\2" * (MAX_ENTRY_BYTES // 2)))
        _committed(appender)
    parts: list[Bytes] = []
    assert appender.write_forgotten(b"0-0", parts) == MAX_KEPT_BYTES // (MAX_ENTRY_BYTES + 1)
    assert sum(map(len, parts)) < MAX_KEPT_BYTES + 4096


def test_many_tiny_messages_of_one_entry_are_kept_as_the_bytes_of_that_entry() -> None:
    """While they wait each counts more than its samples, and all together more than may be kept."""
    appender, _ = _appender(keep_s=3.0)
    while appender.pending_bytes <= 2 * MAX_KEPT_BYTES:
        appender.append(Audio(b"aa"))
    (entry,) = _committed(appender)
    parts: list[Bytes] = []
    assert appender.write_forgotten(b"0-0", parts) == 1
    ((_, _, _, entry_id, *fields),) = _words(parts)
    assert decode_audio_entry(entry_id, fields) == entry


def test_a_stream_that_redis_forgot_is_made_anew_while_all_of_it_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("common.streams.appender.time.monotonic", lambda: now[0])
    appender, log = _appender(keep_s=3.0, origin=lambda: pack(b"EVAL", b"create"))
    assert appender.keeps, "it has no audio yet, and would be missed"
    assert appender.begin_again()
    assert log.asked_to_look == 1
    for now[0] in (100.0, 102.0):
        appender.append(Audio(b"aa"))
        _committed(appender)
    parts: list[Bytes] = []
    assert appender.write_forgotten(None, parts) == 3
    commands = _words(parts)
    assert commands[0] == [b"EVAL", b"create"]
    assert [words[3] for words in commands[1:]] == [b"2-5", b"2-6"]
    now[0] = 104.0
    appender.append(Audio(b"aa"))
    _committed(appender)
    assert not appender.begin_again(), "its first audio is kept no longer"
    assert log.asked_to_look == 1
    assert appender.write_forgotten(None, []) == 0


def test_a_stream_that_has_ended_is_not_made_anew() -> None:
    appender, _ = _appender(keep_s=3.0, origin=lambda: b"")
    appender.append(Audio(b"aa", final=True))
    _committed(appender)
    appender.drop_kept()
    assert not appender.keeps
    assert not appender.begin_again()
    assert appender.write_forgotten(None, []) == 0


def test_nothing_is_kept_unless_asked_for() -> None:
    appender, _ = _appender(origin=lambda: b"")
    appender.append(Audio(b"aa"))
    _committed(appender)
    assert not appender.keeps


def test_messages_of_one_sample_count_for_what_they_are() -> None:
    appender, _ = _appender()
    for _ in range(1000):
        appender.append(Audio(b"\x55", Encoding.MULAW))
        appender.append(Audio(b"\x55", Encoding.ALAW))  # which shares no entry with the one before
    assert appender.pending_bytes > 2000 * 100
    out: list[Bytes] = []
    while appender.write_next(out):
        appender.committed()
    assert (len(_words(out)), appender.pending_bytes) == (2000, 0)


def test_phrases_are_an_entry_of_their_own_in_their_place() -> None:
    appender, _ = _appender()
    appender.append(Audio(b"\x01\x00" * 10))
    appender.mark(Phrases((Phrase("Jane Doe"), Phrase("Zyrtec", 2.0))))
    appender.append(Audio(b"\x02\x00" * 10))
    weighs = appender.pending_bytes
    out: list[Bytes] = []
    while appender.write_next(out):
        appender.committed()
    first, change, last = _words(out)
    assert first[3:] == [b"2-5", b"o", b"100", b"p", b"\x01\x00" * 10]
    assert change[3:] == [b"2-6", b"o", b"110", b"h", b'["Jane Doe",{"text":"Zyrtec","boost":2.0}]']
    assert last[3:5] == [b"2-7", b"o"]
    assert weighs > 40 + len("Jane DoeZyrtec")
    assert appender.pending_bytes == 0
