"""Results of a stream as items: which text belongs to which, when it is told, and in which order."""

from __future__ import annotations

import pytest

from common.errors import ErrorCode
from common.messages import Finalize, Word
from tests.realtime_talk import TRANSCRIPTION, Talk, append, silence, update

_COMMIT = {"type": "input_audio_buffer.commit"}
_CLEAR = {"type": "input_audio_buffer.clear"}
_ITEM = ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
_STARTED = "input_audio_buffer.speech_started"
_STOPPED = "input_audio_buffer.speech_stopped"


def _vad(**more: object) -> Talk:
    talk = Talk()
    talk.say(update(turn_detection={"type": "server_vad", **more}))
    talk.events.clear()
    return talk


def _manual() -> Talk:
    talk = Talk()
    talk.say(update(turn_detection=None))
    talk.events.clear()
    return talk


def _checked(talk: Talk) -> None:
    """The events but for the first ones, which a test has forgotten."""
    said, talk.said = talk.said, []
    created = [{**Talk().events[0], "event_id": "event_created"}]
    talk.events = created + talk.events
    assert talk.complaints() == []
    talk.said = said


def test_an_utterance_is_an_item_and_its_deltas_are_its_transcript() -> None:
    talk = _vad()
    talk.say(append(silence(3000)))
    assert talk.result("", 500) == []
    talk.result("", 660, turn="start_of_utterance")
    talk.result("go", 800)
    talk.result("go", 960)
    talk.result("go for", 1120)
    talk.result("go forward", 1280)
    talk.result("go forward", 2000, turn="end_of_utterance")
    talk.result("go forward.", 2160, finals=(("go forward.", 0.6, 1.3),))
    assert talk.kinds == [_STARTED, "delta", "delta", "delta", _STOPPED, *_ITEM, "delta", "completed"]
    started, stopped = talk.events[0], talk.events[4]
    assert started["audio_start_ms"] == 660 - 96 - 300
    assert stopped["audio_end_ms"] == 2000
    deltas = [event["delta"] for event in talk.events if event["type"] == f"{TRANSCRIPTION}.delta"]
    assert deltas == ["go", " for", "ward", "."]
    assert talk.events[-1]["usage"] == {"type": "duration", "seconds": 0.7}
    assert talk.events[5]["previous_item_id"] is None
    _checked(talk)


def test_words_that_may_be_the_next_utterances_wait_for_the_final_of_the_one_before() -> None:
    talk = _vad()
    talk.say(append(silence(5000)))
    talk.result("", 500, turn="start_of_utterance")
    talk.result("one two", 1000)
    talk.result("one two", 1600, turn="end_of_utterance")
    assert talk.result("one two", 1900, turn="start_of_utterance")[0]["type"] == _STARTED
    assert talk.result("one two three four", 2000) == []
    told = talk.result("one two three four five", 2100, finals=(("one two three", 0.4, 1.1),))
    assert [event["type"].rpartition(".")[2] for event in told] == ["delta", "completed", "delta"]
    assert [event.get("delta") for event in told] == [" three", None, "four five"]
    assert told[0]["item_id"] == told[1]["item_id"] != told[2]["item_id"]
    talk.result("one two three four five", 2800, turn="end_of_utterance")
    talk.result("one two three four five", 3200, finals=(("four five", 1.9, 2.2),))
    assert talk.transcripts() == ["one two three", "four five"]
    _checked(talk)


def test_two_utterances_whose_finals_come_together_are_completed_in_order() -> None:
    talk = _vad()
    talk.say(append(silence(5000)))
    for at in (500, 1500):
        talk.result("a", at, turn="start_of_utterance")
        talk.result("a b", at + 700, turn="end_of_utterance")
    talk.result("a b c", 2600, finals=(("a b", 0.4, 0.6), ("c", 1.4, 1.6)))
    assert talk.transcripts() == ["a b", "c"]
    _checked(talk)


def test_words_outside_of_all_utterances_stand_in_the_next_one() -> None:
    talk = _vad()
    talk.say(append(silence(5000)))
    assert talk.result("uh", 300) == []
    told = talk.result("uh", 700, turn="start_of_utterance")
    assert [event["type"] for event in told] == [_STARTED, f"{TRANSCRIPTION}.delta"]
    talk.result("uh yes", 1500, turn="end_of_utterance", finals=(("uh yes", 0.6, 0.9),))
    assert talk.transcripts() == ["uh yes"]
    _checked(talk)


@pytest.mark.parametrize("late", [".", "?!", "。"])
def test_a_late_mark_of_the_item_before_opens_no_item(late: str) -> None:
    talk = _vad()
    talk.say(append(silence(5000)))
    talk.result("", 500, turn="start_of_utterance")
    talk.result("so it is", 1500, turn="end_of_utterance", finals=(("so it is", 0.4, 0.9),))
    talk.result("so it is", 2000, turn="start_of_utterance")
    assert talk.result(f"so it is{late}", 2100) == []
    assert [event["delta"] for event in talk.result(f"so it is{late} yes", 2200)] == ["yes"]
    talk.result(f"so it is{late} yes", 3000, turn="end_of_utterance", finals=(("yes", 1.9, 2.2),))
    assert talk.transcripts() == ["so it is", "yes"]
    _checked(talk)


def test_an_utterance_without_words_is_an_item_with_an_empty_transcript() -> None:
    talk = _vad()
    talk.say(append(silence(5000)))
    for at in (500, 2500):
        talk.result("", at, turn="start_of_utterance")
        talk.result("", at + 900, turn="end_of_utterance", finals=(("", at / 1000, at / 1000 + 0.3),))
    assert talk.transcripts() == ["", ""]
    _checked(talk)


def test_a_commit_ends_the_item_at_once_and_the_answer_completes_it() -> None:
    talk = _manual()
    talk.say(append(silence(1000)))
    talk.result("go", 500)
    assert talk.say(_COMMIT) == [Finalize()]
    assert talk.kinds == ["delta", *_ITEM]
    talk.result("go for", 900)
    talk.result("go forward", 1000, answer=True)
    assert talk.kinds[4:] == ["delta", "delta", "completed"]
    assert talk.events[-1]["usage"]["seconds"] == 1.0
    talk.say(append(silence(500)))
    talk.result("go forward ten", 1500)
    talk.say(_COMMIT)
    talk.result("go forward ten meters", 1500, answer=True)
    assert talk.transcripts() == ["go forward", "ten meters"]
    assert talk.events[-1]["usage"]["seconds"] == 0.5
    _checked(talk)


def test_commits_that_wait_are_answered_in_order() -> None:
    talk = _manual()
    for _ in range(3):
        talk.say(append(silence(200)), _COMMIT)
    talk.result("a", 200, answer=True)
    talk.result("a b", 300)
    talk.result("a b", 400, answer=True)
    talk.result("a b", 600, answer=True)
    assert talk.transcripts() == ["a", "b", ""]
    _checked(talk)


def test_less_than_100_ms_is_no_item() -> None:
    talk = _manual()
    assert talk.say(_COMMIT | {"event_id": "mine"}) == []
    talk.say(append(silence(99)))
    assert talk.say(_COMMIT) == []
    assert [fault["code"] for fault in talk.faults()] == ["input_audio_buffer_commit_empty"] * 2
    assert talk.faults()[0]["event_id"] == "mine"
    talk.say(append(silence(1)))
    assert talk.say(_COMMIT) == [Finalize()]
    talk.result("", 100, answer=True)
    assert talk.say(_COMMIT) == []
    assert len(talk.faults()) == 3
    _checked(talk)


def test_cleared_audio_is_in_no_item() -> None:
    talk = _manual()
    talk.say(append(silence(500)))
    talk.result("no not", 300)
    assert talk.say(_CLEAR) == [Finalize()]
    assert talk.kinds == ["delta", "input_audio_buffer.cleared"]
    assert talk.result("no not this", 400) == []
    talk.say(append(silence(500)))
    assert talk.result("no not this one", 500, answer=True) == []
    (told,) = talk.result("no not this one but that", 900)
    assert told["delta"] == "but that"
    assert told["item_id"] != talk.events[0]["item_id"]
    talk.say(_COMMIT)
    talk.result("no not this one but that", 1000, answer=True)
    assert talk.transcripts() == ["but that"]
    _checked(talk)


def test_nothing_to_clear_asks_nothing_of_the_stream() -> None:
    talk = _manual()
    assert talk.say(_CLEAR, _CLEAR) == []
    talk.say(append(silence(50)))
    assert talk.say(_CLEAR, _CLEAR) == [Finalize()]
    assert talk.kinds == ["input_audio_buffer.cleared"] * 4
    assert talk.say(_COMMIT) == []
    _checked(talk)


def test_a_commit_cuts_an_utterance_that_the_detector_has_open() -> None:
    talk = _vad()
    talk.say(append(silence(1200)))
    talk.result("", 500, turn="start_of_utterance")
    talk.result("go", 900)
    assert talk.say(_COMMIT) == [Finalize()]
    assert talk.kinds == [_STARTED, "delta", _STOPPED, *_ITEM]
    assert talk.events[2]["audio_end_ms"] == 1200
    talk.result("go for", 1200, turn="end_of_utterance", finals=(("go for", 0.4, 1.2),), answer=True)
    talk.say(append(silence(1500)))
    talk.result("go for it", 1700, turn="start_of_utterance")
    talk.result("go for it", 2700, turn="end_of_utterance", finals=(("it", 1.6, 2.0),))
    assert talk.transcripts() == ["go for", "it"]
    starts = [event for event in talk.events if event["type"] == _STARTED]
    assert len({event["item_id"] for event in starts}) == 2
    _checked(talk)


def test_a_commit_behind_an_utterance_whose_final_is_to_come_completes_both_in_order() -> None:
    talk = _vad()
    talk.say(append(silence(2000)))
    talk.result("", 500, turn="start_of_utterance")
    talk.result("one", 1200, turn="end_of_utterance")
    talk.say(_COMMIT)
    talk.result("one two", 2000, finals=(("one", 0.4, 0.7),), answer=True)
    assert talk.transcripts() == ["one", "two"]
    _checked(talk)


def test_what_the_detector_says_of_audio_before_a_commit_is_of_the_commits_item() -> None:
    talk = _vad()
    talk.say(append(silence(3000)), _COMMIT)
    talk.result("", 500, turn="start_of_utterance")
    talk.result("one", 1200, turn="end_of_utterance")
    talk.result("one", 1500, turn="start_of_utterance", finals=(("one", 0.4, 0.7),))
    talk.result("one two", 3000, turn="end_of_utterance", finals=(("two", 1.4, 3.0),), answer=True)
    assert talk.transcripts() == ["one two"]
    assert _STARTED not in talk.kinds
    _checked(talk)


def test_clear_ends_open_speech_and_drops_it() -> None:
    talk = _vad()
    talk.say(append(silence(1000)))
    talk.result("", 500, turn="start_of_utterance")
    talk.result("no", 700)
    talk.say(_CLEAR)
    assert talk.kinds == [_STARTED, "delta", _STOPPED, "input_audio_buffer.cleared"]
    talk.result("no no", 1000, turn="end_of_utterance", finals=(("no no", 0.4, 1.0),), answer=True)
    talk.say(append(silence(2000)))
    talk.result("no no yes", 1500, turn="start_of_utterance")
    talk.result("no no yes", 2500, turn="end_of_utterance", finals=(("yes", 1.4, 1.7),))
    assert talk.transcripts() == ["yes"]
    _checked(talk)


def test_the_client_may_take_over_from_the_detector() -> None:
    talk = _vad()
    talk.say(append(silence(2000)))
    talk.result("", 500, turn="start_of_utterance")
    talk.say(update(turn_detection=None))
    talk.result("one", 1300, turn="end_of_utterance", finals=(("one", 0.4, 0.7),))
    talk.result("one two", 1700, turn="start_of_utterance")
    talk.say(_COMMIT)
    talk.result("one two", 2000, turn="end_of_utterance", finals=(("two", 1.6, 1.9),), answer=True)
    assert talk.transcripts() == ["one two"]
    assert talk.faults() == []


def test_text_that_another_worker_replaced_stands_in_completed() -> None:
    talk = _manual()
    talk.say(append(silence(1000)))
    talk.result("go forwart", 500)
    talk.result("go forward", 700)  # of a worker that began at an older checkpoint
    talk.say(_COMMIT)
    talk.result("go forward ten", 1000, answer=True)
    deltas = [event["delta"] for event in talk.events if event["type"] == f"{TRANSCRIPTION}.delta"]
    assert deltas == ["go forwart"]
    assert talk.transcripts() == ["go forward ten"]


def test_an_utterance_whose_final_another_worker_does_not_have_is_completed_all_the_same() -> None:
    talk = _vad()
    talk.say(append(silence(20_000)))
    talk.result("", 500, turn="start_of_utterance")
    talk.result("one", 900, turn="start_of_utterance")  # by a worker that began anew
    talk.result("one", 1500, turn="end_of_utterance")
    talk.result("one two", 11_000)
    assert talk.transcripts() == []
    talk.result("one two", 11_600)
    assert talk.transcripts() == ["one two"]
    talk.result("one two", 12_000, turn="start_of_utterance")
    talk.result("one two six", 13_000, turn="end_of_utterance", finals=(("six", 11.9, 12.5),))
    assert talk.transcripts() == ["one two", "six"]
    _checked(talk)


def test_log_probabilities_are_those_of_the_words() -> None:
    talk = Talk()
    session = {"type": "transcription", "include": ["item.input_audio_transcription.logprobs"]}
    talk.say({"type": "session.update", "session": session})
    assert talk.dialect.options.words
    talk.say(append(silence(3000)))
    words = (Word("go", 0.5, 0.6, 1.0), Word("on", 0.7, 0.8, 0.5), Word("so", 1.9, 2.0, 0.25))
    talk.result("", 500, turn="start_of_utterance", words=())
    talk.result("go on so", 2100, turn="end_of_utterance", words=words)
    told = talk.result("go on so", 2200, finals=(("go on", 0.4, 0.8),), words=())
    assert told[1]["logprobs"] == [
        {"token": "go", "logprob": 0.0, "bytes": [103, 111]},
        {"token": " on", "logprob": -0.6931, "bytes": [32, 111, 110]},
    ]
    talk.result("go on so", 2300, turn="start_of_utterance", words=())
    told = talk.result("go on so", 2900, turn="end_of_utterance", finals=(("so", 1.8, 2.0),), words=())
    assert [one["token"] for one in told[-1]["logprobs"]] == ["so"]
    assert talk.complaints() == []


def test_items_that_will_not_be_finished_have_failed() -> None:
    talk = _vad()
    talk.say(append(silence(3000)))
    talk.result("", 500, turn="start_of_utterance")
    talk.result("one", 1200, turn="end_of_utterance")
    talk.say(_COMMIT)
    told = talk.error(ErrorCode.WORKER_FAILED)
    assert [event["type"].rpartition(".")[2] for event in told] == ["failed", "failed"]
    assert told[0]["error"] == {
        "type": "server_error",
        "code": "worker_failed",
        "message": "A sentence.",
        "param": None,
    }
    assert talk.error(ErrorCode.WORKER_FAILED) == []
    _checked(talk)


def test_the_end_of_the_stream_answers_all_that_waits() -> None:
    talk = _vad()
    talk.say(append(silence(500)), _COMMIT, append(silence(500)), _CLEAR, append(silence(500)), _COMMIT)
    talk.result("one three", 1500, final=True)
    assert len(talk.transcripts()) == 2
    _checked(talk)


def test_in_the_beta_an_item_is_created() -> None:
    talk = Talk()
    session = {"input_audio_format": "pcm16", "turn_detection": None}
    talk.say({"type": "transcription_session.update", "session": session})
    talk.say(append(silence(500)), _COMMIT)
    talk.result("go", 500, answer=True)
    assert talk.kinds == [
        "session.created",
        "transcription_session.updated",
        "input_audio_buffer.committed",
        "conversation.item.created",
        "delta",
        "completed",
    ]
    assert talk.complaints() == []
