"""One stream's results as an ingress takes them: in order, once, nothing missing, nothing stale."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from common.entries import Line, LineKind, StreamId, encode_record
from common.errors import EntryError, ErrorCode, NoWorker, RedisUnavailable, StreamError, StreamLost
from common.messages import Audio, Encoding, Result, Utterance, Word
from common.monitoring.metrics import IngressMetrics
from common.options import StreamOptions
from common.redis.keys import Keys
from common.streams.appender import MAX_PENDING_BYTES, Appender
from common.streams.result_reader import Position
from ingress.streams.life import Action
from ingress.streams.redis_link import LinkContext, Place, RedisLink
from tests.fake_backplane import some_result

pytestmark = pytest.mark.one_loop

_KEYS = Keys().stream(StreamId(5))


class _Listener:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.texts: list[str] = []
        self.results: list[Result] = []
        self.undecoded_s = 0.0

    def on_result(self, kind: LineKind, result: Result) -> None:
        self.told.append((kind.name, result.seq))
        self.texts.append(result.text)
        self.results.append(result)

    def on_error(self, error: StreamError) -> None:
        self.told.append(("ERROR", error.code.value, error.message))

    def on_ack(self, samples: int) -> None:
        self.told.append(("ACK", samples))

    def on_failure(self, error: StreamError) -> None:
        self.told.append(error.code.value)

    def on_taken(self) -> None:
        self.told.append("taken")

    def on_room(self) -> None:
        self.told.append("room")


class _Backplane:
    """Does what links ask for, without Redis."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.context = LinkContext(
            self.act,
            self.on_gone,
            self.start_task,
            resume_grace_s=7.0,
            metrics=IngressMetrics(),
            sample_rate=16000,
            confirm=lambda link: None,
        )

    def start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> object:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine, name=name))
        return self.tasks[-1]

    def act(self, link: RedisLink, action: Action) -> None:
        if action is not Action.CREATE:
            self.asked.append(action.name)

    def on_gone(self, link: RedisLink) -> None:
        self.asked.append("gone")


class _Appender:
    """Takes audio without Redis."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.finals = 0
        self.pending_bytes = 0
        self.failed: StreamError | None = None
        self.owner: object = None
        self.drained = asyncio.Event()
        self.kept = True

    def append(self, audio: Audio) -> None:
        self.payloads.append(audio.payload)
        self.finals += audio.final
        self.pending_bytes += len(audio.payload)

    def set_owner(self, owner: object) -> None:
        self.owner = owner

    async def room(self, max_bytes: int) -> None:
        await self.drained.wait()

    def drop_kept(self) -> None:
        self.kept = False


class _Roomless(_Appender):
    """Has a defect."""

    async def room(self, max_bytes: int) -> None:
        raise RuntimeError("a defect")


def _admitted() -> tuple[RedisLink, _Backplane, _Listener]:
    backplane, listener = _Backplane(), _Listener()
    return RedisLink(backplane.context, _KEYS, listener, "secret"), backplane, listener


def _link() -> tuple[RedisLink, _Backplane, _Listener]:
    """A stream that has begun."""
    link, backplane, listener = _admitted()
    link.begin(StreamOptions())
    return link, backplane, listener


def _created(link: RedisLink) -> _Appender:
    appender = _Appender()
    link.is_created(appender)  # type: ignore[arg-type]
    return appender


def _line(kind: LineKind, epoch: int, seq: int, text: str = "", text_from: int = 0) -> Line:
    body = encode_record(some_result(seq, text), text_from)
    if kind is LineKind.OWNER:
        body = b"w-%d" % epoch
    elif kind is LineKind.ACK:
        body = b""
    return Line(kind, StreamId(5), epoch, seq, seq * 100, body)


_P, _F, _O, _A = LineKind.PARTIAL, LineKind.FINAL, LineKind.OWNER, LineKind.ACK


def _seqs(listener: _Listener) -> list[bytes]:
    return [told[1] for told in listener.told if isinstance(told, tuple) and told[0] != "ACK"]


@pytest.mark.parametrize(("kind", "is_cut"), [(_F, True), (LineKind.FINALIZED, True), (_P, False)])
async def test_no_time_of_all_audio_is_behind_its_end(kind: LineKind, is_cut: bool) -> None:
    """The frames of the model end behind the audio; a later result may have more audio for its words."""
    link, _, listener = _link()
    link.receive(_line(_O, 1, 0))
    words = Word("one", 0.96, 1.04, 0.9), Word("two", 1.04, 1.12, 0.9)
    said = some_result(1, "one two", words=words, utterances=(Utterance(1, "one two", 0.9, 1.1),))
    link.receive(Line(kind, StreamId(5), 1, 1, 16_009, encode_record(said, 0)))
    (result,) = listener.results
    times = [(word.start_s, word.end_s) for word in result.words or ()]
    times += [(utterance.start_s, utterance.end_s) for utterance in result.utterances]
    exact = [(0.96, 1.04), (1.04, 1.12), (0.9, 1.1)]
    assert times == ([(0.96, 1.0), (1.0, 1.0), (0.9, 1.0)] if is_cut else exact)


async def test_results_in_order_pass_and_repeated_ones_do_not() -> None:
    link, _, listener = _link()
    lines = [_line(_O, 1, 0), _line(_P, 1, 1), _line(_P, 1, 1), _line(_P, 1, 2), _line(_P, 1, 1)]
    assert all(link.receive(line) for line in lines)
    assert len(_seqs(listener)) == 2
    assert link.worker == "w-1"
    assert (link.position.epoch, link.position.seq) == (1, 2)


async def test_a_claim_and_each_change_of_owner_are_counted_once() -> None:
    link, backplane, _ = _link()
    metrics = backplane.context.metrics
    for line in (_line(_O, 1, 0), _line(_O, 1, 0), _line(_P, 1, 1), _line(_O, 3, 1), _line(_O, 3, 1)):
        assert link.receive(line)
    assert sum(metrics.claim_wait_seconds.counts) == 1
    assert metrics.takeovers == 1


async def test_a_gap_is_told_and_nothing_after_it_passes() -> None:
    link, _, listener = _link()
    link.receive(_line(_O, 1, 0))
    assert link.receive(_line(_P, 1, 1))
    assert not link.receive(_line(_P, 1, 3))
    assert not link.receive(_line(_F, 1, 4))
    assert len(_seqs(listener)) == 1
    for seq in (2, 3):
        assert link.receive(_line(_P, 1, seq), repair=True)
    assert link.receive(_line(_F, 1, 4))
    assert len(_seqs(listener)) == 4
    assert link.ended


async def test_lines_of_an_owner_that_lost_the_stream_are_void() -> None:
    link, _, listener = _link()
    for line in (_line(_O, 1, 0), _line(_P, 1, 1), _line(_O, 2, 1)):
        assert link.receive(line)
    assert link.receive(_line(_P, 1, 2))
    assert link.receive(_line(_A, 1, 2))
    assert link.receive(_line(_O, 1, 1))
    assert len(listener.told) == 1
    assert link.worker == "w-2"
    assert link.receive(_line(_P, 2, 2))
    assert len(listener.told) == 2


async def test_a_new_owner_that_knows_more_than_we_do_is_a_gap() -> None:
    link, _, _ = _link()
    link.receive(_line(_O, 1, 0))
    assert not link.receive(_line(_O, 2, 3))
    assert link.position.epoch == 1
    for line in (_line(_P, 1, 1), _line(_P, 1, 2), _line(_P, 1, 3), _line(_O, 2, 0)):
        assert link.receive(line, repair=True)
    assert link.worker == "w-2"
    assert link.receive(_line(_P, 2, 4))


async def test_results_of_an_owner_nobody_announced_are_a_gap() -> None:
    link, _, listener = _link()
    assert not link.receive(_line(_P, 1, 1))
    assert listener.told == []


async def test_an_acknowledgement_behind_a_lost_result_is_a_gap() -> None:
    link, _, listener = _link()
    link.receive(_line(_O, 1, 0))
    link.receive(_line(_P, 1, 1))
    assert link.receive(_line(_A, 1, 1))
    assert listener.told[-1] == ("ACK", 100)
    assert not link.receive(_line(_A, 1, 2))


async def test_results_that_are_no_longer_kept_end_the_stream() -> None:
    link, _, listener = _link()
    link.receive(_line(_O, 1, 0), repair=True)
    link.receive(_line(_P, 1, 1), repair=True)
    assert not link.receive(_line(_P, 1, 9), repair=True)
    assert listener.told[-1] == "stream_lost"


async def test_a_stream_that_nobody_listens_to_misses_no_result() -> None:
    """It waits for its client, who says what it has; and its end must be seen."""
    link = RedisLink((owner := _Backplane()).context, _KEYS, None, "")
    link.adopt(None, StreamOptions(resume=True), Place(None), next_sample=0, finished=False)
    link.abandon(keep=True)
    for line in (_line(_P, 1, 300), _line(_O, 2, 300), _line(_P, 2, 301)):
        assert link.receive(line, repair=True)
    assert not link.receive(_line(_F, 2, 303)), "published, and not read"
    assert owner.asked == []
    assert link.receive(_line(_F, 2, 303), repair=True)
    assert owner.asked == ["REMOVE_UNSENT"]


async def test_nothing_passes_after_the_end() -> None:
    link, _owner, listener = _link()
    appender = _created(link)
    for line in (_line(_O, 1, 0), _line(_F, 1, 1), _line(_P, 1, 2), _line(LineKind.ERROR, 1, 2)):
        assert appender.kept == (line.seq == 0 or line.kind is _F)
        assert link.receive(line)
    assert len(_seqs(listener)) == 1


async def test_audio_that_comes_before_the_stream_is_created_is_kept_in_order() -> None:
    link, _owner, _ = _link()
    link.append(Audio(b"aa"))
    link.append(Audio(b"bb"))
    link.receive(_line(_O, 1, 0))
    appender = _created(link)
    link.append(Audio(b"cc", final=True))
    assert appender.payloads == [b"aa", b"bb", b"cc"]
    assert appender.owner == "w-1"
    assert appender.finals == 1
    link.abandon(keep=False)
    assert appender.finals == 1


async def test_a_stream_that_cannot_be_created_fails() -> None:
    link, owner, listener = _link()
    link.is_not_created(NoWorker())
    assert listener.told == ["no_worker"]
    link.abandon(keep=False)
    assert owner.asked == ["GIVE_UP"]


@pytest.mark.parametrize("lost_first", [True, False])
async def test_a_stream_that_failed_at_one_connection_waits_for_its_client(lost_first: bool) -> None:
    """Its audio is in Redis as far as it came, and the client goes on behind that: nothing ends it there."""
    for comes_back in (True, False):
        link, owner, listener = _admitted()
        link.begin(StreamOptions(resume=True))
        appender = _created(link)
        if lost_first:
            link.abandon(keep=True)
        error = appender.failed = RedisUnavailable()
        link.on_append_failed(error)
        if not lost_first:
            assert listener.told == ["redis_unavailable"]
            link.abandon(keep=True)
        assert link.waits_for_client
        assert link.created, "its keys are renewed"
        if comes_back:
            link.taken()
            assert owner.asked == ["TELL_TAKEN"]
        else:
            link.grace_is_over()
            assert owner.asked == ["GIVE_UP"], "nothing can be appended, not even its end"
        assert appender.finals == 0


async def test_a_stream_that_no_connection_can_go_on_with_waits_for_nobody() -> None:
    for gone in (True, False):
        link, owner, _ = _admitted()
        link.begin(StreamOptions(resume=True))
        if gone:
            _created(link)
            link.fail(StreamLost())
        else:
            link.is_not_created(RedisUnavailable())
        link.abandon(keep=True)
        assert owner.asked == ["GIVE_UP"]


async def test_too_much_on_its_way_pauses_until_there_is_room() -> None:
    link, owner, listener = _link()
    assert link.append(Audio(b"a" * (MAX_PENDING_BYTES // 2)))
    assert not link.append(Audio(b"b" * (MAX_PENDING_BYTES // 2)))
    appender = _created(link)
    for _ in range(5):
        await asyncio.sleep(0)
    assert listener.told == []
    appender.drained.set()
    await asyncio.gather(*owner.tasks)
    assert listener.told == ["room"]


async def test_many_tiny_messages_on_their_way_pause_too() -> None:
    link, _, _ = _link()
    tiny = Audio(b"\x55", Encoding.MULAW)
    num_taken = next(number for number in range(MAX_PENDING_BYTES) if not link.append(tiny))
    assert num_taken < MAX_PENDING_BYTES // 100
    _created(link)


async def test_an_abandoned_stream_is_finished_now_or_after_the_grace() -> None:
    for keep in (False, True):
        link, owner, listener = _link()
        appender = _created(link)
        link.abandon(keep=keep)
        assert appender.finals == (0 if keep else 1)
        assert link.waits_for_client is keep
        if keep:
            assert link.grace_ends_at == pytest.approx(asyncio.get_running_loop().time() + 7.0, abs=1)
            link.grace_is_over()
            assert appender.finals == 1
        link.receive(_line(_O, 1, 0))
        link.receive(_line(_F, 1, 1))
        assert owner.asked == ["REMOVE_UNSENT"]
        assert listener.told == []


async def test_an_admission_that_was_not_used_is_given_back() -> None:
    link, owner, _ = _admitted()
    link.abandon(keep=True)
    assert owner.asked == ["GIVE_BACK"]


async def test_a_stream_taken_by_another_connection_is_left_alone() -> None:
    link, owner, listener = _link()
    link.receive(_line(_O, 1, 0))
    link.taken()
    assert listener.told == ["taken"]
    assert owner.asked == ["TELL_TAKEN"]
    link.receive(_line(_P, 1, 1))
    assert listener.told == ["taken"]


async def test_waiting_counts_only_while_there_is_something_to_do() -> None:
    link, _owner, listener = _link()
    _created(link)
    start = asyncio.get_running_loop().time()
    assert link.waits_for_progress(100, start + 50) == 0.0
    listener.undecoded_s = 100
    assert link.waits_for_progress(100, start + 60) == pytest.approx(10)
    link.receive(_line(_O, 1, 0))
    assert link.waits_for_progress(100, start + 60) == pytest.approx(10)
    link.receive(_line(_P, 1, 1))
    assert link.waits_for_progress(100, start + 61) == pytest.approx(61, abs=1)
    listener.undecoded_s = 0
    assert link.waits_for_progress(100, start + 70) == 0.0
    link.audio.finish()
    assert link.waits_for_progress(100, start + 75) == pytest.approx(5)


async def test_a_takeover_has_its_time_for_the_replay() -> None:
    link, _owner, listener = _link()
    _created(link)
    start = asyncio.get_running_loop().time()
    listener.undecoded_s = 100
    link.receive(_line(_O, 1, 0))
    link.progress_at = start - 40
    assert link.waits_for_progress(100, start) == pytest.approx(40)
    link.receive(_line(_O, 2, 0))
    assert link.waits_for_progress(100, start) == pytest.approx(0, abs=1)


async def test_a_suspect_waits_for_its_process_but_not_for_ever() -> None:
    link, _owner, listener = _link()
    _created(link)
    now = asyncio.get_running_loop().time()
    listener.undecoded_s = 100
    link.progress_at = now - 29
    link.suspected(180.0)
    assert link.waits_for_progress(100, now) == pytest.approx(0, abs=1)
    link.suspected_at = now - 181
    link.progress_at = now - 29
    link.suspected(180.0)
    assert link.waits_for_progress(100, now) == pytest.approx(29, abs=1)


async def test_a_failure_is_told_once() -> None:
    link, _, listener = _link()
    link.fail(NoWorker())
    link.fail(StreamError(ErrorCode.INTERNAL, "Again."))
    assert listener.told == ["no_worker"]


async def test_each_result_has_the_whole_text() -> None:
    link, _, listener = _link()
    for line in (
        _line(_O, 1, 0),
        _line(_P, 1, 1, "one", 0),
        _line(_P, 1, 2, "one two", 3),
        _line(_P, 1, 3, "one two", 7),
        _line(_P, 1, 4, "one too", 5),
        _line(_F, 1, 5, "one too many", 7),
    ):
        assert link.receive(line)
    assert listener.texts == ["one", "one two", "one two", "one too", "one too many"]


@pytest.mark.parametrize("told_seq", [1, 2, 3])
async def test_a_link_that_takes_over_begins_with_the_kept_text(told_seq: int) -> None:
    """The kept text is that of result 2; the client may have less, or more."""
    link, _, listener = _admitted()
    start = min(told_seq, 2)
    link.adopt(
        None,
        StreamOptions(resume=True),
        Place(Position(_KEYS, 1, start), "one two", told_seq),
        next_sample=0,
        finished=False,
    )
    lines = [
        _line(_P, 1, 2, "one two", 3),
        _line(_P, 1, 3, "one two three", 7),
        _line(_P, 1, 4, "one two three four", 13),
    ]
    for line in lines[start - 1 :]:
        assert link.receive(line, repair=True)
    assert listener.texts == ["one two", "one two three", "one two three four"][told_seq - 1 :]
    assert [told[1] for told in listener.told if isinstance(told, tuple)] == list(range(told_seq + 1, 5))


async def test_a_text_that_is_missing_is_no_text() -> None:
    link, _, _ = _admitted()
    link.adopt(None, StreamOptions(), Place(Position(_KEYS, 1, 7), "one", 7), next_sample=0, finished=False)
    with pytest.raises(EntryError):
        link.receive(_line(_P, 1, 8, "one two three", 7))


async def test_a_client_that_waits_for_room_is_told_when_there_will_be_none() -> None:
    link, backplane, listener = _link()
    link.is_created(cast("Appender", _Roomless()))
    assert not link.append(Audio(b"\0" * (MAX_PENDING_BYTES + 2)))
    for task in backplane.tasks:
        await task
    assert listener.told == ["internal"]
