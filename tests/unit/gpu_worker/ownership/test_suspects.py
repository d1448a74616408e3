"""When a suspect is cleared."""

from __future__ import annotations

from common.streams.assignments import Checkpoint
from gpu_worker.ownership.suspects import is_cleared
from gpu_worker.pipeline.flow import StreamFlow, Undecoded
from tests.stream_records import owned_stream


def make_flow(died_to: bytes | None, checkpoint: Checkpoint | None = None) -> StreamFlow:
    checkpoint = checkpoint or Checkpoint()
    return StreamFlow(owned_stream(epoch=3, checkpoint=checkpoint, died_to=died_to, deaths=2))


def test_a_suspect_is_cleared_when_the_last_entry_in_question_is_decoded() -> None:
    flow = make_flow(b"1-9")
    assert not is_cleared(flow, settled=True)
    flow.undecoded.extend([Undecoded(b"1-8", 1), Undecoded(b"1-9", 2), Undecoded(b"1-10", 3)])
    flow.decoded_entry = b"1-8"
    assert not is_cleared(flow, settled=False)
    flow.decoded_entry = b"1-9"
    assert is_cleared(flow, settled=False)
    flow.decoded_entry = b"1-10"
    assert is_cleared(flow, settled=False), "a number, not a string, is compared"


def test_entries_of_a_later_connection_are_behind_those_of_an_earlier_one() -> None:
    flow = make_flow(b"2-1")
    flow.decoded_entry = b"1-50"
    assert not is_cleared(flow, settled=False)
    flow.decoded_entry = b"10-1"
    assert is_cleared(flow, settled=False)


def test_what_ends_within_a_chunk_is_decoded_as_far_as_it_goes() -> None:
    flow = make_flow(b"1-9")
    flow.undecoded.append(Undecoded(b"1-8", 1))
    assert not is_cleared(flow, settled=True), "not all of it has been read"
    flow.undecoded.append(Undecoded(b"1-9", 2))
    assert not is_cleared(flow, settled=False)
    assert is_cleared(flow, settled=True)


def test_a_checkpoint_behind_the_deaths_clears() -> None:
    assert is_cleared(make_flow(b"1-9", Checkpoint(b"1-9", 100, 3)), settled=False)
    assert not is_cleared(make_flow(b"1-9", Checkpoint(b"1-8", 100, 3)), settled=False)
