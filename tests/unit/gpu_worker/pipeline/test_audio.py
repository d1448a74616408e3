"""Audio entries become the same samples however the audio was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.entries import AudioEntry
from common.errors import ClientFault, ErrorCode, StreamLost
from common.messages import Encoding
from common.streams.assignments import Base
from gpu_worker.engine.slots.samples import Samples, float_samples
from gpu_worker.pipeline.audio import AudioConverter, client_samples, entry_samples
from gpu_worker.pipeline.g711 import ALAW, MULAW


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


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_the_loudest_samples_are_samples_at_every_rate(rate: int) -> None:
    loud = np.full(rate, np.finfo(np.float32).max, "<f4")
    parts = AudioConverter(rate).push(entry(0, loud.tobytes(), Encoding.F32))
    samples = np.concatenate([float_samples(part) for part in parts])  # refuses what is not finite
    assert len(samples) > 8_000
    assert samples[4_000:-4_000].min() > 1.0


@pytest.mark.parametrize(("payload", "encoding"), [(b"abc", Encoding.PCM16), (b"abcdef", Encoding.F32)])
def test_half_a_sample_is_refused(payload: bytes, encoding: Encoding) -> None:
    with pytest.raises(ClientFault) as fault:
        entry_samples(entry(0, payload, encoding))
    assert fault.value.code is ErrorCode.ODD_BYTE_COUNT


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 50)), min_size=1, max_size=12))
def test_audio_that_is_there_already_is_left_out(cuts: list[tuple[int, int]]) -> None:
    """Each entry goes back over some of what was sent, as a client does that resumed."""
    pcm = np.arange(5000, dtype="<i2")
    audio = AudioConverter(16_000)
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
    audio = AudioConverter(16_000)
    audio.push(entry(0, b"\0\0" * 10))
    with pytest.raises(StreamLost):
        audio.push(entry(11, b"\0\0"))


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_replay_feeds_what_the_snapshot_does_not_cover(rate: int) -> None:
    pcm = np.random.default_rng(0).integers(-9000, 9000, 12 * rate, dtype="<i2")
    whole = AudioConverter(rate)
    all_samples = np.concatenate([*whole.push(entry(0, pcm.tobytes())), *whole.finish()])
    decoded = 11 * 16_000 + 333
    replay = AudioConverter(rate, decoded)
    first = replay.next_sample
    assert 0 < first <= 11 * rate + rate
    cut = first - 100  # entries are older than what is needed
    samples = np.concatenate([*replay.push(entry(cut, pcm[cut:].tobytes())), *replay.finish()])
    assert np.array_equal(samples, all_samples[decoded:])


def test_client_samples_never_say_more_than_was_decoded() -> None:
    assert client_samples(16_000, 777) == 777
    assert client_samples(8000, 777) == 388
    assert client_samples(48_000, 777) == 2331


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_the_place_of_a_mark_does_not_depend_on_what_was_resampled_by_then(rate: int) -> None:
    """A replay that begins anywhere before it has it where the first owner had it."""
    base = Base(samples=5_000, origin=5_000, client_origin=rate // 4)
    whole = AudioConverter(rate, 5_000, base)
    payload = bytes(2 * (rate + 17))
    whole.push(AudioEntry(b"1-1", rate // 4, payload))
    later = AudioConverter(rate, 9_000, base)
    later.push(AudioEntry(b"1-1", rate // 4, payload))
    assert later.engine_sample(later.next_sample) == whole.engine_sample(whole.next_sample)
    fed = 5_000 + (rate + 17) * 16_000 / rate
    assert fed <= whole.engine_sample(whole.next_sample) < fed + 1


_ENCODED = {
    Encoding.PCM16: lambda x: (x * 32_767).astype("<i2"),
    Encoding.F32: lambda x: x.astype("<f4"),
    Encoding.MULAW: lambda x: np.abs(MULAW[None, :] - (x * 32_124)[:, None]).argmin(1).astype(np.uint8),
    Encoding.ALAW: lambda x: np.abs(ALAW[None, :] - (x * 32_256)[:, None]).argmin(1).astype(np.uint8),
}


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 8_001])
@given(cuts=st.lists(st.integers(1, 3_000), max_size=30), scale=st.floats(0.0, 1.0))
@settings(max_examples=15)
def test_the_samples_do_not_depend_on_the_size_of_messages(
    encoding: Encoding, rate: int, cuts: list[int], scale: float
) -> None:
    chance = np.random.default_rng(0)
    encoded = _ENCODED[encoding](scale * chance.uniform(-1, 1, 12_000))

    def heard(cuts: list[int]) -> NDArray[np.float32]:
        audio = AudioConverter(rate)
        parts: list[Samples] = []
        at = 0
        for size in [*cuts, len(encoded)]:
            parts += audio.push(entry(at, encoded[at : at + size].tobytes(), encoding))
            at = min(at + size, len(encoded))
        parts += audio.finish()
        return np.concatenate([float_samples(part) for part in parts])

    assert np.array_equal(heard([]), heard(cuts))


def test_companded_samples_are_those_of_the_recommendation() -> None:
    """Values of the tables of ITU-T G.711."""

    def linear(byte: int, encoding: Encoding) -> int:
        (sample,) = entry_samples(entry(0, bytes((byte,)), encoding))
        return int(sample)

    assert [linear(byte, Encoding.MULAW) for byte in (0x00, 0x80, 0x7F, 0xFF, 0x0F, 0x70, 0xF0, 0xEF)] == [
        *(-32_124, 32_124, 0, 0, -16_764, -120, 120, 132)
    ]
    assert [linear(byte, Encoding.ALAW) for byte in (0x2A, 0xAA, 0x55, 0xD5, 0x54, 0xD4, 0x45, 0x80)] == [
        *(-32_256, 32_256, -8, 8, -24, 24, -264, 5_504)
    ]
    for table in (MULAW, ALAW):
        assert np.array_equal(np.sort(table[:128]), np.sort(-table[128:]))
