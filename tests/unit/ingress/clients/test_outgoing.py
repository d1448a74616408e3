"""The bounded buffer of a slow reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

import pytest

from common.errors import ClientFault, ErrorCode
from common.messages import Ack, Pong, Result
from common.monitoring.metrics import IngressMetrics
from ingress.clients.outgoing import Outgoing
from ingress.dialects.native import NativeDialect
from ingress.meter import Meter
from ingress.sockets.peer import Peer
from tests.fake_backplane import some_result


class _Peer:
    """A client's socket, as far as messages are written to it."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self.send = send

    def accept(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Nothing to do, as on the TCP port."""


def _outgoing(send: Callable[[bytes], object], max_bytes: int) -> Outgoing:
    meter = Meter(IngressMetrics(), "tcp")
    outgoing = Outgoing(cast("Peer", _Peer(send)), NativeDialect(16000), meter, max_bytes)
    outgoing.open()
    return outgoing


def _partial(seq: int, *tokens: int) -> Result:
    return some_result(seq, f"text {seq}", tokens=tokens, acked=seq * 100)


def test_messages_pass_straight_through_while_the_client_reads() -> None:
    written: list[bytes] = []
    buffer = _outgoing(written.append, 1000)
    buffer.send(Pong())
    buffer.send(_partial(1), mergeable=True)
    assert len(written) == 2
    assert buffer.empty


def test_a_slow_reader_gets_neighbouring_partials_as_one_and_all_else_as_it_was() -> None:
    written: list[bytes] = []
    buffer = _outgoing(written.append, 100_000)
    buffer.pause()
    for seq in (1, 2, 3):
        buffer.send(_partial(seq, seq), mergeable=True)
    buffer.send(some_result(4, turn=True))
    for seq in (5, 6):
        buffer.send(_partial(seq), mergeable=True)
    buffer.send(Pong())
    buffer.send(_partial(7), mergeable=True)
    buffer.send(some_result(8, "all", final=True))
    assert written == []
    buffer.resume()
    ranges = [(json.loads(m).get("seq_first"), json.loads(m).get("seq")) for m in written]
    assert ranges == [(1, 3), (None, 4), (5, 6), (None, None), (None, 7), (None, 8)]
    assert json.loads(written[-1])["is_final"]
    assert buffer.empty
    assert buffer.waiting_bytes == 0


def test_merged_partials_do_not_grow_the_buffer() -> None:
    buffer = _outgoing(lambda message: None, 1000)
    buffer.pause()
    for seq in range(1, 500):
        buffer.send(_partial(seq), mergeable=True)
    assert buffer.waiting_bytes < 500


def test_what_cannot_be_merged_is_bounded() -> None:
    buffer = _outgoing(lambda message: None, 2000)
    buffer.pause()
    for seq in range(1, 7):
        buffer.send(some_result(seq, turn=True))
    with pytest.raises(ClientFault) as caught:
        buffer.send(some_result(7, turn=True))
    assert caught.value.code is ErrorCode.SLOW_READER


def test_small_messages_are_bounded_too() -> None:
    buffer = _outgoing(lambda message: None, 2000)
    buffer.pause()
    for _ in range(13):
        buffer.send(Pong())
    with pytest.raises(ClientFault):
        buffer.send(Pong())


def _turn(seq: int, text: str) -> Result:
    return some_result(seq, text, turn=True)


def test_a_long_transcript_is_no_slow_reader() -> None:
    """Each result carries the whole text: what is longer than the buffer may still wait, in small number."""
    text = "word " * 60_000  # 300 KB
    written: list[bytes] = []
    buffer = _outgoing(written.append, 256 * 1024)
    buffer.pause()
    for seq in range(1, 50):
        buffer.send(some_result(seq, text), mergeable=True)
    assert buffer.waiting_bytes > 256 * 1024
    buffer.send(_turn(50, text))
    buffer.send(some_result(51, text, final=True))
    buffer.resume()
    assert [json.loads(message)["seq"] for message in written] == [49, 50, 51]
    assert all(json.loads(message)["text"] == text for message in written)


def test_many_long_results_are_a_slow_reader() -> None:
    buffer = _outgoing(lambda message: None, 2000)
    buffer.pause()
    for seq in range(1, 5):
        buffer.send(_turn(seq, "x" * 3000))
    with pytest.raises(ClientFault):
        buffer.send(_turn(5, "x" * 3000))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_results_are_bounded_too(count: int) -> None:
    buffer = _outgoing(lambda message: None, 2000)
    buffer.pause()
    for seq in range(1, count):
        buffer.send(_turn(seq, "x" * 1000))
    with pytest.raises(ClientFault):
        buffer.send(_turn(count, "x" * 40_000))


def test_writing_stops_when_the_transport_is_full_again() -> None:
    written: list[bytes] = []

    def write(message: bytes) -> None:
        written.append(message)
        buffer.pause()

    buffer = _outgoing(write, 2000)
    buffer.pause()
    buffer.send(Pong())
    buffer.send(Ack(2))
    buffer.resume()
    assert written == [b'{"type":"pong"}']
    buffer.send(Ack(3))
    buffer.resume()
    buffer.resume()
    assert [json.loads(message)["audio_ack_samples"] for message in written[1:]] == [2, 3]


def test_results_of_two_streams_are_not_merged() -> None:
    written: list[bytes] = []
    buffer = _outgoing(written.append, 2000)
    buffer.pause()
    for stream in (0, 1, 1, 0):
        buffer.send(_partial(1 + len(written)), stream, mergeable=True)
    buffer.resume()
    assert ["seq_first" in json.loads(message) for message in written] == [False, True, False]
