"""Audio in any shape through the client library, against an ingress with the backplane in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from parakeet.audio.source import Recording, Source, open_source
from parakeet.client import BadAudio, Result, StreamOptions, connect, transcribe
from parakeet.client.blocks import Blocks
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import Harness, serving

PCM = bytes(range(256)) * 40
RECORDING = Path(__file__).parents[4] / "parakeet" / "recordings" / "goforward.wav"


@pytest.fixture
async def echo() -> AsyncIterator[Harness]:
    """An echoing server."""
    async with serving(ScriptedBackplane(echo=True)) as harness:
        yield harness


def _pieces() -> Iterator[bytes]:
    return (PCM[at : at + 999] for at in range(0, len(PCM), 999))


async def _async_pieces() -> AsyncIterator[bytes]:
    for piece in _pieces():
        yield piece


SHAPES: list[Callable[[], Blocks]] = [
    lambda: PCM,
    lambda: bytearray(PCM),
    lambda: memoryview(PCM),
    lambda: list(_pieces()),
    _pieces,
    _async_pieces,
]


@pytest.mark.parametrize("make", SHAPES)
async def test_samples_in_any_shape_arrive_whole(make: Callable[[], Blocks], echo: Harness) -> None:
    seen: list[Result] = []
    final = await transcribe(echo.ws_url, make(), on_result=seen.append)
    assert bytes(echo.backplane.link.payload) == PCM
    assert final.text == f"{len(PCM) // 2} samples"
    assert seen[-1] == final
    async with await connect(echo.tcp_url) as stream:
        await stream.send_from(make())
        assert (await stream.final()).text == final.text


@pytest.mark.parametrize("shape", ["path", "str", "source", "recording"])
async def test_recordings_are_sent_at_their_own_rate(shape: str, echo: Harness) -> None:
    sources: dict[str, Source | Path | str] = {
        "path": RECORDING,
        "str": str(RECORDING),
        "recording": Recording(PCM, 11_025),
    }
    source = open_source(RECORDING) if shape == "source" else sources[shape]
    await transcribe(echo.ws_url, source, options=StreamOptions(words=True))
    options = echo.backplane.link.options
    assert options is not None
    assert options.words
    assert options.sample_rate == (11_025 if shape == "recording" else 16_000)
    expected = PCM if shape == "recording" else RECORDING.read_bytes()[44:]
    assert bytes(echo.backplane.link.payload) == expected


async def test_what_came_before_damage_is_recognized(echo: Harness, tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(RECORDING.read_bytes()[: 44 + 20_000])
    seen: list[Result] = []
    with pytest.raises(BadAudio, match=r"is not whole: its header says .* s, and 0\.62 s are there"):
        await transcribe(echo.ws_url, path, on_result=seen.append)
    assert seen[-1].is_final
    assert seen[-1].text == "10000 samples"


async def test_a_source_that_fails_in_the_middle_is_told_after_its_text(echo: Harness) -> None:
    class Failing(Recording):
        def blocks(self) -> Iterator[bytes]:
            yield bytes(16_000 * 2)
            raise BadAudio("It broke.")

    seen: list[Result] = []
    with pytest.raises(BadAudio, match="It broke"):
        await transcribe(echo.ws_url, Failing(b"", 16_000), on_result=seen.append)
    assert seen[-1].is_final


async def test_an_iterator_that_fails_or_a_callback_ends_it_all_with_their_own_error(echo: Harness) -> None:
    def failing() -> Iterator[bytes]:
        yield PCM
        raise KeyError("of the caller")

    async with asyncio.timeout(60):
        with pytest.raises(KeyError, match="of the caller"):
            await transcribe(echo.ws_url, failing())

    def full(_: Result) -> None:
        raise BrokenPipeError

    async with asyncio.timeout(60):
        with pytest.raises(BrokenPipeError):
            await transcribe(echo.ws_url, PCM, on_result=full)


async def test_a_stop_ends_audio_that_waits_and_the_final_comes(echo: Harness) -> None:
    stop = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield PCM
        await asyncio.Event().wait()

    async with asyncio.timeout(60):
        final = await transcribe(echo.ws_url, endless(), on_result=lambda _: stop.set(), stop=stop)
    assert final.text == f"{len(PCM) // 2} samples"
