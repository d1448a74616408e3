"""What the query of `POST /v1/listen` makes of a recording: its channels, its samples, its phrases."""

from __future__ import annotations

import array
import io
import wave

import pytest

from common.phrases import DEFAULT_BOOST, Phrase
from ingress.api.listen import listen_endpoints
from ingress.media.decoder import Decoders
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving
from tests.unit.ingress.http.test_transcriptions import posted, recordings_of

pytestmark = pytest.mark.one_loop

# Of each channel; two and three bytes a sample, since the first needs no library and the second does.
LEFT, RIGHT = array.array("h", range(0, 8_000, 2)), array.array("h", range(-8_000, 0, 2))


def stereo(width: int) -> bytes:
    """Return a WAV file of LEFT and RIGHT. width: bytes of a sample."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(width)
        out.setframerate(16_000)
        padding = bytes(width - 2)
        for both in zip(LEFT, RIGHT, strict=True):
            out.writeframesraw(b"".join(padding + one.to_bytes(2, "little", signed=True) for one in both))
    return file.getvalue()


async def heard(query: str, body: bytes) -> tuple[int, dict, ScriptedBackplane]:  # type: ignore[type-arg]
    """Post a recording; return status, answer and what the service has heard."""
    backplane, decoders = ScriptedBackplane(echo=True), Decoders(1)
    endpoints = listen_endpoints(recordings_of(backplane, decoders=decoders))
    async with serving(backplane, endpoints=endpoints) as harness:
        status, answer = await posted(harness.ws_port, f"/v1/listen?{query}", body)
    assert decoders.running == 0
    return status, answer, backplane


@pytest.mark.parametrize("width", [2, 3])
async def test_channels_that_are_wanted_apart_are_transcribed_each(width: int) -> None:
    status, answer, backplane = await heard("multichannel=true&utterances=true", stereo(width))
    assert status == 200
    assert [link.payload for link in backplane.links] == [LEFT.tobytes(), RIGHT.tobytes()]
    assert answer["metadata"]["channels"] == 2
    texts = [channel["alternatives"][0]["transcript"] for channel in answer["results"]["channels"]]
    assert texts == ["4000 samples"] * 2
    assert answer["metadata"]["duration"] == 0.25


async def test_channels_are_mixed_where_nobody_wants_them_apart() -> None:
    status, answer, backplane = await heard("", stereo(2))
    assert (status, answer["metadata"]["channels"]) == (200, 1)
    mean = array.array("h", [(left + right) // 2 for left, right in zip(LEFT, RIGHT, strict=True)])
    assert backplane.link.payload == mean.tobytes()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("linear16", LEFT.tobytes()),
        ("linear32", array.array("f", [sample / 32_768 for sample in LEFT]).tobytes()),
    ],
)
async def test_samples_without_a_head_are_what_the_query_says(encoding: str, body: bytes) -> None:
    status, _, backplane = await heard(f"encoding={encoding}&sample_rate=8000", body)
    assert status == 200
    assert backplane.link.options is not None
    assert backplane.link.options.sample_rate == 8_000
    assert backplane.link.payload == LEFT.tobytes()


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
async def test_silence_in_g711_is_silence(encoding: str) -> None:
    silent = bytes([0xFF if encoding == "mulaw" else 0xD5]) * 800
    _, _, backplane = await heard(f"encoding={encoding}&sample_rate=8000", silent)
    samples = array.array("h", backplane.link.payload)
    assert (len(samples), max(map(abs, samples)) <= 8) == (800, True)


async def test_interleaved_samples_without_a_head_are_kept_apart() -> None:
    both = array.array("h", [sample for pair in zip(LEFT, RIGHT, strict=True) for sample in pair])
    query = "encoding=linear16&sample_rate=16000&channels=2&multichannel=true"
    _, _, backplane = await heard(query, both.tobytes())
    assert [link.payload for link in backplane.links] == [LEFT.tobytes(), RIGHT.tobytes()]


@pytest.mark.parametrize("query", ["encoding=mulaw&sample_rate=8000", "encoding=linear16"])
async def test_a_container_is_what_it_is_whatever_the_query_says(query: str) -> None:
    """Deepgram's SDKs have `encoding` for recordings, and no `sample_rate`."""
    _, _, backplane = await heard(f"{query}&multichannel=true", stereo(2))
    assert [link.payload for link in backplane.links] == [LEFT.tobytes(), RIGHT.tobytes()]


async def test_key_terms_and_keywords_are_phrases_of_the_recording() -> None:
    _, _, backplane = await heard("keyterm=ten%20meters&keywords=go:2", stereo(2))
    assert backplane.link.options is not None
    assert backplane.link.options.phrases == (
        Phrase("ten meters", optional=True),
        Phrase("go", 2 * DEFAULT_BOOST, optional=True),
    )


async def test_an_empty_body_is_refused_as_one() -> None:
    for query in ("", "encoding=linear16&sample_rate=16000"):
        status, answer, backplane = await heard(query, b"")
        assert (status, answer["err_msg"], backplane.links) == (400, "The body is empty.", [])


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "none of WAV"),
        ("utterances=perhaps", "'utterances' is true or false"),
        ("encoding=linear16", "needs 'sample_rate'"),
        ("encoding=speex&sample_rate=8000", "does not decode this 'encoding'"),
        ("keyterm=%20", "phrases that can be read"),
    ],
)
async def test_a_wrong_query_is_refused(query: str, sentence: str) -> None:
    status, answer, backplane = await heard(query, LEFT.tobytes())
    assert (status, backplane.links) == (400, [])
    assert sentence in answer["err_msg"]
    assert set(answer) == {"err_code", "err_msg", "request_id"}
