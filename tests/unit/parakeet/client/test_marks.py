"""Messages of a client that have a place in its audio."""

from __future__ import annotations

from common.messages import Finalize, Phrases
from common.phrases import Phrase
from parakeet.client.marks import Mark, Marks

_PHRASES = Phrases((Phrase("go on"),))


def send_all(marks: Marks, written: int) -> list[Mark]:
    sent = []
    while (mark := marks.due(written)) is not None:
        sent.append(mark)
        marks.sent()
    return sent


def test_a_mark_is_due_once_the_audio_before_it_is_written() -> None:
    marks = Marks()
    marks.add(10, Finalize())
    marks.add(20, _PHRASES)
    assert send_all(marks, 9) == []
    assert send_all(marks, 19) == [Finalize()]
    assert send_all(marks, 20) == [_PHRASES]


def test_what_may_be_lost_is_sent_again_in_its_order() -> None:
    marks = Marks()
    for place, mark in ((10, Finalize()), (10, _PHRASES), (20, Finalize()), (30, Finalize())):
        marks.add(place, mark)
    send_all(marks, 20)
    marks.answered()
    marks.decoded(10)  # nothing says that the phrases behind these samples have arrived
    marks.repeat()
    assert send_all(marks, 30) == [_PHRASES, Finalize(), Finalize()]


def test_phrases_have_arrived_once_audio_behind_them_is_decoded() -> None:
    marks = Marks()
    marks.add(10, _PHRASES)
    send_all(marks, 10)
    marks.decoded(11)
    marks.repeat()
    assert send_all(marks, 99) == []
