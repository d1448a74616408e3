"""Audio between the caller and the server: cut anywhere, kept as long as it is needed, bounded."""

from __future__ import annotations

import random

import pytest

from common.messages import Encoding
from parakeet.client.sent_audio import MAX_MESSAGE_AUDIO_BYTES, SentAudio


def take(audio: SentAudio, payload: bytes, encoding: Encoding = Encoding.PCM16) -> None:
    for block in audio.cut(payload, encoding):
        audio.append(block)


def write_all(audio: SentAudio) -> bytes:
    """Write what waits; return the bytes that the server gets."""
    written = b""
    while (block := audio.next_block()) is not None:
        written += block.from_sample(audio.written).payload
        audio.wrote(block)
    return written


@pytest.mark.parametrize("seed", range(5))
def test_another_connection_gets_the_rest_from_any_sample_that_is_not_decoded(seed: int) -> None:
    cuts = random.Random(seed)
    pcm = cuts.randbytes(8 * MAX_MESSAGE_AUDIO_BYTES)
    audio = SentAudio()
    audio.keep = True
    at = 0
    while at < len(pcm):
        size = cuts.randrange(1, 2 * MAX_MESSAGE_AUDIO_BYTES)
        take(audio, pcm[at : at + size])
        at += size
    assert not audio.ends_within_a_sample
    assert write_all(audio) == pcm
    for _ in range(10):
        audio.decoded_up_to(cuts.randrange(audio.decoded, len(pcm) // 2))
        next_sample = audio.written = cuts.randrange(audio.decoded, len(pcm) // 2)
        assert write_all(audio) == pcm[2 * next_sample :]


def test_what_is_not_kept_is_forgotten_once_it_is_written() -> None:
    audio = SentAudio()
    take(audio, bytes(10 * MAX_MESSAGE_AUDIO_BYTES))
    write_all(audio)
    audio.written = 0
    assert audio.next_block() is None


def test_a_part_of_a_sample_waits_for_its_rest_and_for_no_other_encoding() -> None:
    audio = SentAudio()
    take(audio, b"\1\2\3")
    assert audio.ends_within_a_sample
    with pytest.raises(ValueError, match="whole sample"):
        audio.cut(bytes(4), Encoding.F32)
    take(audio, b"\4")
    assert write_all(audio) == b"\1\2\3\4"
    for block in audio.cut(b"\5\6\7\x08\x09", Encoding.F32):
        audio.append(block)
    assert write_all(audio) == b"\5\6\7\x08"
    assert audio.ends_within_a_sample


def test_room_is_bounded_by_the_socket_and_by_the_window() -> None:
    rate, window_s = 100, 5.0
    audio = SentAudio()
    audio.keep = True
    take(audio, bytes(2 * 200))
    assert audio.has_room(rate, window_s)
    take(audio, bytes(2))
    assert not audio.has_room(rate, window_s), "2 s wait for the socket"
    write_all(audio)
    assert audio.has_room(rate, window_s)
    take(audio, bytes(2 * 300))
    write_all(audio)
    assert not audio.has_room(rate, window_s), "5 s are not decoded"
    audio.decoded_up_to(1)
    assert audio.has_room(rate, window_s)
    audio.decoded_up_to(0)
    assert audio.decoded == 1
