"""Audio entries become the same samples however the audio was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.entries import AudioEntry
from common.errors import ClientFault, ErrorCode, StreamLost
from common.messages import Encoding
from gpu_worker.audio import StreamAudio, client_samples, entry_samples
from gpu_worker.engine.samples import Samples, float_samples


def entry(first: int, payload: bytes, encoding: Encoding = Encoding.PCM16) -> AudioEntry:
    return AudioEntry(b"1-1", first, payload, encoding)


def test_pcm16_and_f32_of_the_same_audio_are_the_same_samples() -> None:
    pcm = np.array([0, 1, -1, 32_767, -32_768], "<i2")
    as_float = (pcm / 32_768).astype("<f4")
    ours = float_samples(entry_samples(entry(0, pcm.tobytes())))
    assert ours.dtype == np.float32
    assert np.array_equal(ours, entry_samples(entry(0, as_float.tobytes(), Encoding.F32)))
    assert ours[3:].tolist() == [32_767 / 32_768, -1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(bad: float) -> None:
    payload = np.array([0.0, bad], "<f4").tobytes()
    with pytest.raises(ClientFault) as fault:
        entry_samples(entry(0, payload, Encoding.F32))
    assert fault.value.code is ErrorCode.BAD_SAMPLES


@pytest.mark.parametrize(("payload", "encoding"), [(b"abc", Encoding.PCM16), (b"abcdef", Encoding.F32)])
def test_half_a_sample_is_refused(payload: bytes, encoding: Encoding) -> None:
    with pytest.raises(ClientFault) as fault:
        entry_samples(entry(0, payload, encoding))
    assert fault.value.code is ErrorCode.ODD_BYTE_COUNT


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 50)), min_size=1, max_size=12))
def test_audio_that_is_there_already_is_left_out(cuts: list[tuple[int, int]]) -> None:
    """Each entry goes back over some of what was sent, as a client does that resumed."""
    pcm = np.arange(5000, dtype="<i2")
    audio = StreamAudio(16_000)
    taken: list[Samples] = []
    at = 0
    for size, back in cuts:
        first = max(0, at - back)
        taken += audio.push(entry(first, pcm[first : at + size].tobytes()))
        at += size
        assert audio.next_sample == at
    samples = np.concatenate(taken) if taken else np.empty(0)
    assert np.array_equal(samples, pcm[:at])


def test_missing_audio_is_noticed() -> None:
    audio = StreamAudio(16_000)
    audio.push(entry(0, b"\0\0" * 10))
    with pytest.raises(StreamLost):
        audio.push(entry(11, b"\0\0"))


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_replay_feeds_what_the_snapshot_does_not_cover(rate: int) -> None:
    pcm = np.random.default_rng(0).integers(-9000, 9000, 12 * rate, dtype="<i2")
    whole = StreamAudio(rate)
    all_samples = np.concatenate([*whole.push(entry(0, pcm.tobytes())), *whole.finish()])
    decoded = 11 * 16_000 + 333
    replay = StreamAudio(rate, decoded)
    first = replay.next_sample
    assert 0 < first <= 11 * rate + rate
    cut = first - 100  # entries are older than what is needed
    samples = np.concatenate([*replay.push(entry(cut, pcm[cut:].tobytes())), *replay.finish()])
    assert np.array_equal(samples, all_samples[decoded:])


def test_client_samples_never_say_more_than_was_decoded() -> None:
    assert client_samples(16_000, 777) == 777
    assert client_samples(8000, 777) == 388
    assert client_samples(48_000, 777) == 2331
