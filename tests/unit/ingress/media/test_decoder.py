"""Media become samples in a child, whatever their container; what is no media is told."""

from __future__ import annotations

import array
import asyncio
import gc
import io
import math
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import psutil
import pytest

from common.options import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from ingress.media.child import MAX_RATE, MIN_RATE, RAW_OPUS
from ingress.media.decoder import DecodedAudio, Decoder, Decoders, DecodersBusy, MediaError, MediaInput
from ingress.media.formats import HEAD_BYTES, sniff
from tests.media_files import ENCODINGS, LOSSLESS, encode, opus_packets, read_pcm
from tests.waiting import until

RECORDING = Path("parakeet/recordings/goforward.wav")


@pytest.fixture
async def decoders() -> AsyncIterator[Decoders]:
    decoders = Decoders(2)
    yield decoders
    assert decoders.running == 0


def test_media_come_at_the_rates_that_a_stream_may_have() -> None:
    assert (MIN_RATE, MAX_RATE) == (MIN_SAMPLE_RATE, MAX_SAMPLE_RATE)


async def decode(
    decoders: Decoders, media: MediaInput, data: bytes = b"", piece: int = 4096
) -> tuple[DecodedAudio, bytes]:
    """Feed data in pieces and return all that comes out."""
    samples = b""
    async with await decoders.start(media) as decoder, asyncio.timeout(60):

        async def feed() -> None:
            for at in range(0, len(data), piece):
                await decoder.feed(data[at : at + piece])
            decoder.end_input()

        feeding = asyncio.create_task(feed())
        try:
            audio = await decoder.audio()
            async for block in decoder.blocks():
                samples += block
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    return audio, samples


def loudness(samples: bytes) -> float:
    values = array.array("h", samples)
    return math.sqrt(sum(value * value for value in values) / max(1, len(values)))


@pytest.mark.parametrize(
    ("name", "as_file"),
    # MP4 may end with its index, so it is decoded as a file alone.
    [(name, as_file) for name in ENCODINGS for as_file in (False, True) if as_file or name != "m4a"],
)
@pytest.mark.one_loop
async def test_every_container_gives_the_recording(
    decoders: Decoders, tmp_path: Path, name: str, as_file: bool
) -> None:
    rate, pcm = read_pcm(RECORDING)
    path = encode(pcm, rate, name, tmp_path)
    data = path.read_bytes()
    media = sniff(data[:HEAD_BYTES])
    assert media is not None
    assert as_file or not media.seeks
    audio, samples = await decode(
        decoders,
        MediaInput(media.demuxer, file=path if as_file else None),
        b"" if as_file else data,
    )
    assert audio == DecodedAudio(ENCODINGS[name][2] or rate, 1)
    seconds = len(samples) / 2 / audio.rate
    assert seconds == pytest.approx(len(pcm) / 2 / rate, abs=0.15)
    assert loudness(samples) == pytest.approx(loudness(pcm), rel=0.1)
    if name in LOSSLESS:
        assert samples == pcm


async def test_pieces_of_one_byte_give_the_same(decoders: Decoders, tmp_path: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    data = encode(pcm[: rate // 2], rate, "flac", tmp_path).read_bytes()
    whole = await decode(decoders, MediaInput("flac"), data)
    assert await decode(decoders, MediaInput("flac"), data, piece=1) == whole


@pytest.mark.one_loop
async def test_channels_are_mixed_or_kept_apart(decoders: Decoders, tmp_path: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    data = encode(pcm, rate, "wav", tmp_path, layout="stereo").read_bytes()
    mixed, samples = await decode(decoders, MediaInput("wav"), data)
    assert (mixed.channels, len(samples)) == (1, len(pcm))
    apart, both = await decode(decoders, MediaInput("wav", mix=False), data)
    assert (apart.channels, len(both)) == (2, 2 * len(pcm))


def wav(fmt: bytes, body: bytes, *, size: int | None = None, before: bytes = b"") -> bytes:
    """A WAV file; size: what its head says of its samples. before: chunks in front of them."""
    head = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + before
    data = b"data" + struct.pack("<I", len(body) if size is None else size) + body
    return b"RIFF" + struct.pack("<I", len(head + data)) + head + data


MONO_16K = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
STEREO_16K = struct.pack("<HHIIHH", 1, 2, 16_000, 64_000, 4, 16)
EXTENSIBLE = bytes.fromhex("1600 1000 04000000 0100 000000001000800000aa00389b71")
STEREO_24 = struct.pack("<HHIIHH", 1, 2, 16_000, 96_000, 6, 24)
TAG = b"LIST" + struct.pack("<I", 70_000) + bytes(70_000)


@pytest.fixture
def without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children cannot import PyAV."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "av.py").write_text("raise ImportError('hidden by a test')")
    path = os.pathsep.join(filter(None, (str(hidden), str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.usefixtures("without_pyav")
@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize(
    ("content", "samples"),
    [
        (wav(MONO_16K, b"abcdef"), b"abcdef"),
        (wav(struct.pack("<H", 0xFFFE) + MONO_16K[2:] + EXTENSIBLE, b"abcdef"), b"abcdef"),
        (wav(MONO_16K, b"abcdef", size=0), b"abcdef"),
        (wav(MONO_16K, b"abcdef", size=0xFFFFFFFF), b"abcdef"),
        (wav(MONO_16K, b"abcdef", size=1_000), b"abcdef"),
        (wav(MONO_16K, b"abcdefLIST", size=6), b"abcdef"),
        (wav(MONO_16K, b"abcde"), b"abcd"),
        (wav(MONO_16K, b"abcdef", before=b"LIST\3\0\0\0tag\0"), b"abcdef"),
    ],
    ids=["plain", "extensible", "size 0", "size -1", "cut off", "chunk behind", "half a sample", "tag"],
)
@pytest.mark.one_loop
async def test_plain_wav_needs_no_library(
    decoders: Decoders, tmp_path: Path, content: bytes, samples: bytes, as_file: bool
) -> None:
    path = tmp_path / "plain.wav"
    path.write_bytes(content)
    audio, heard = await decode(
        decoders, MediaInput("wav", file=path if as_file else None), b"" if as_file else content, piece=5
    )
    assert (audio, heard) == (DecodedAudio(16_000, 1), samples)


@pytest.mark.usefixtures("without_pyav")
@pytest.mark.one_loop
async def test_channels_of_plain_wav_are_kept_apart_without_a_library(decoders: Decoders) -> None:
    audio, heard = await decode(decoders, MediaInput("wav", mix=False), wav(STEREO_16K, b"LLRRllrrLL"))
    assert (audio, heard) == (DecodedAudio(16_000, 2), b"LLRRllrr")


@pytest.mark.usefixtures("without_pyav")
@pytest.mark.one_loop
async def test_plain_wav_without_samples_has_no_sound(decoders: Decoders) -> None:
    with pytest.raises(MediaError, match="has no sound"):
        await decode(decoders, MediaInput("wav"), wav(MONO_16K, b""))


@pytest.mark.usefixtures("without_pyav")
async def test_the_first_samples_of_a_live_wav_come_at_once(decoders: Decoders) -> None:
    async with await decoders.start(MediaInput("wav")) as decoder, asyncio.timeout(60):
        await decoder.feed(wav(MONO_16K, b"", size=0) + b"abcd")
        assert await decoder.audio() == DecodedAudio(16_000, 1)
        blocks = decoder.blocks()
        assert await anext(blocks) == b"abcd"
        await decoder.feed(b"ef")
        assert await anext(blocks) == b"ef"
        await blocks.aclose()


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.one_loop
async def test_a_wav_that_is_not_plain_goes_to_the_library_from_its_first_byte(
    decoders: Decoders, tmp_path: Path, as_file: bool
) -> None:
    # Whole frames of both: FFmpeg 7 loses the packet of a frame that is cut off.
    tone = array.array("h", [8_000, -8_000] * 9_000).tobytes()
    for content in (wav(STEREO_24, tone), wav(MONO_16K, tone, before=TAG)):
        path = tmp_path / "other.wav"
        path.write_bytes(content)
        audio, heard = await decode(
            decoders, MediaInput("wav", file=path if as_file else None), b"" if as_file else content
        )
        assert audio == DecodedAudio(16_000, 1)
        assert len(heard) == (len(tone) // 3 if content[22] == 2 else len(tone))


@pytest.mark.parametrize("name", ["wav", "flac"])
@pytest.mark.one_loop
async def test_a_channel_upside_down_does_not_silence_the_other(
    decoders: Decoders, tmp_path: Path, name: str
) -> None:
    rate, pcm = read_pcm(RECORDING)
    both = array.array("h", [sample for one in array.array("h", pcm) for sample in (one, -one)]).tobytes()
    data = wav(STEREO_16K, both)
    if name == "flac":
        path = tmp_path / "both.wav"
        path.write_bytes(data)
        data = flac_of(path)
    audio, samples = await decode(decoders, MediaInput(name), data)
    assert (rate, audio) == (16_000, DecodedAudio(16_000, 1))
    assert samples == pcm


def flac_of(path: Path) -> bytes:
    """Return a WAV file's samples, all channels of them, as FLAC."""
    file = io.BytesIO()
    with av.open(str(path)) as source, av.open(file, "w", format="flac") as target:
        stream: Any = target.add_stream("flac", rate=source.streams.audio[0].rate)
        stream.layout = source.streams.audio[0].layout
        stream.format = "s16"
        for frame in source.decode(audio=0):
            frame.pts = None
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.one_loop
async def test_packets_of_opus(decoders: Decoders) -> None:
    rate, pcm = read_pcm(RECORDING)
    packets = opus_packets(pcm, rate)
    data = b"".join(struct.pack(">H", len(packet)) + packet for packet in packets)
    audio, samples = await decode(decoders, MediaInput(RAW_OPUS), data)
    assert audio == DecodedAudio(48_000, 1)
    assert len(samples) / 2 / 48_000 == pytest.approx(len(pcm) / 2 / rate, abs=0.1)
    assert loudness(samples) == pytest.approx(loudness(pcm), rel=0.1)


DAMAGED_OPUS = (
    b"\xff\xff"  # 63 frames of 20 ms in one packet, which may have 120 ms (RFC 6716, section 3.2.5)
)


@pytest.mark.parametrize(
    ("num_packets", "every"), [(50, 25), (1_000, 5)], ids=["a few of a short input", "many of a long input"]
)
@pytest.mark.one_loop
async def test_damaged_packets_of_opus_become_silence(
    decoders: Decoders, num_packets: int, every: int
) -> None:
    """What follows them would be early by the time that they took."""
    rate, pcm = read_pcm(RECORDING)
    packets = (opus_packets(pcm, rate) * num_packets)[:num_packets]
    packets[every // 2 :: every] = [DAMAGED_OPUS] * (num_packets // every)
    data = b"".join(struct.pack(">H", len(packet)) + packet for packet in packets)
    _, samples = await decode(decoders, MediaInput(RAW_OPUS), data)
    assert len(samples) / 2 / 48_000 == pytest.approx(0.02 * num_packets, abs=0.015)


@pytest.mark.one_loop
async def test_packets_of_opus_that_are_all_damaged_are_no_media(decoders: Decoders) -> None:
    data = (struct.pack(">H", len(DAMAGED_OPUS)) + DAMAGED_OPUS) * 1_000
    with pytest.raises(MediaError):
        await decode(decoders, MediaInput(RAW_OPUS), data)


@pytest.mark.one_loop
async def test_a_damaged_beginning_counts_too(decoders: Decoders) -> None:
    rate, pcm = read_pcm(RECORDING)
    packets = [DAMAGED_OPUS] * 50 + opus_packets(pcm, rate)
    data = b"".join(struct.pack(">H", len(packet)) + packet for packet in packets)
    _, samples = await decode(decoders, MediaInput(RAW_OPUS), data)
    second = 2 * 48_000
    assert not any(samples[: second - 2_000])
    assert len(samples) / second == pytest.approx(1 + len(pcm) / 2 / rate, abs=0.1)


@pytest.mark.one_loop
async def test_damaged_packets_of_aac_become_silence(decoders: Decoders, tmp_path: Path) -> None:
    """FFmpeg's decoder of AAC has several errors for damage; all but one ended the whole recording."""
    rate, pcm = read_pcm(RECORDING)
    data = bytearray(encode(pcm, rate, "aac", tmp_path).read_bytes())
    at = number = 0
    while at < len(data):
        size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5  # of the packet with its head
        if number % 10 == 5:
            data[at + 7 : at + size] = b"\xff" * (size - 7)
        at += size
        number += 1
    _, samples = await decode(decoders, MediaInput("aac"), bytes(data))
    assert len(samples) == 2 * 1024 * number


@pytest.mark.one_loop
async def test_damaged_packets_of_a_container_become_silence(decoders: Decoders, tmp_path: Path) -> None:
    """It tells the duration of each packet, which a decoder might not."""
    rate, pcm = read_pcm(RECORDING)
    data = bytearray(encode(pcm, rate, "m4a", tmp_path).read_bytes())
    path = tmp_path / "damaged.m4a"
    path.write_bytes(data)
    _, whole = await decode(decoders, MediaInput("mov", path))
    with av.open(str(path)) as container:
        packets: list[Any] = [packet for packet in container.demux(audio=0) if packet.size]
    for packet in packets[10::10]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    _, samples = await decode(decoders, MediaInput("mov", path))
    assert len(samples) == pytest.approx(len(whole), abs=2 * 1024), "within one packet"
    assert loudness(samples) == pytest.approx(loudness(whole), rel=0.2), "the rest is in its place"


@pytest.mark.one_loop
async def test_media_that_is_cut_off_gives_what_is_there(decoders: Decoders, tmp_path: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    data = encode(pcm, rate, "wav", tmp_path).read_bytes()
    _, samples = await decode(decoders, MediaInput("wav"), data[: len(data) // 2])
    assert samples == pcm[: len(samples)]
    assert len(samples) == pytest.approx(len(pcm) / 2, abs=5000)


@pytest.mark.parametrize("demuxer", ["wav", "flac", "ogg", "matroska", "mov", "mp3", "aac", "aiff", "amr"])
@pytest.mark.one_loop
async def test_what_is_no_media_is_told(decoders: Decoders, demuxer: str) -> None:
    noise = bytes(range(1, 256)) * 200
    with pytest.raises(MediaError) as raised:
        await decode(decoders, MediaInput(demuxer), noise)
    assert "\n" not in str(raised.value)


@pytest.mark.one_loop
async def test_tags_that_are_no_utf_8_cost_nothing(decoders: Decoders, tmp_path: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    wav = encode(pcm, rate, "wav", tmp_path).read_bytes()
    title = "Fr\xfchst\xfcck".encode("latin-1") + b"\0"
    info = b"INFO" + b"INAM" + struct.pack("<I", len(title)) + title
    tags = b"LIST" + struct.pack("<I", len(info)) + info
    data_at = wav.index(b"data")
    tagged = wav[:data_at] + tags + wav[data_at:]
    _, samples = await decode(decoders, MediaInput("wav"), tagged)
    assert samples == pcm


async def test_a_child_that_is_killed_has_reached_its_limits(decoders: Decoders) -> None:
    async with await decoders.start(MediaInput("wav")) as decoder:
        decoder._process.kill()
        with pytest.raises(MediaError, match="within the limits of time and memory"):
            await decoder.audio()


@pytest.mark.one_loop
async def test_media_that_take_more_memory_than_a_child_may_are_refused(tmp_path: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    path = encode(pcm, rate, "flac", tmp_path)
    decoders = Decoders(1, max_memory_bytes=16 << 20)
    with pytest.raises(MediaError):
        await decode(decoders, MediaInput("flac", file=path))
    assert decoders.running == 0


async def test_where_memory_runs_out_the_child_is_to_go_first(decoders: Decoders) -> None:
    async with await decoders.start(MediaInput("wav")) as decoder:
        await decoder.feed(RECORDING.read_bytes()[:100_000])  # noqa: ASYNC240 - a small file
        await decoder.audio()
        score = Path(f"/proc/{decoder._process.pid}/oom_score_adj").read_text()  # noqa: ASYNC240 - no disk
    assert score.strip() == "1000"


async def test_a_defect_of_the_child_is_logged_and_no_limit(
    decoders: Decoders, caplog: pytest.LogCaptureFixture
) -> None:
    no_rate = MediaInput(RAW_OPUS, rate="fast")  # type: ignore[arg-type]
    async with await decoders.start(no_rate) as decoder:
        with pytest.raises(MediaError, match=r"^The media cannot be decoded\.$"):
            await decoder.audio()
    assert "invalid int value: 'fast'" in caplog.text


@pytest.mark.one_loop
async def test_a_playlist_opens_nothing(decoders: Decoders, tmp_path: Path) -> None:
    """What names other files is no format of ours, whatever demuxer it is given to."""
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    assert sniff(playlist) is None
    assert sniff(b"ffconcat version 1.0\nfile '/etc/passwd'\n") is None
    assert sniff(b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n") is None


async def test_live_streams_come_before_decoding(decoders: Decoders) -> None:
    async with await decoders.start(MediaInput("wav", file=RECORDING)) as decoder:
        await decoder.audio()
        niceness = os.getpriority(os.PRIO_PROCESS, decoder._process.pid)
    assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


async def test_no_more_than_so_many_at_once(decoders: Decoders) -> None:
    first = await decoders.start(MediaInput("wav"))
    second = await decoders.start(MediaInput("wav"))
    with pytest.raises(DecodersBusy):
        await decoders.start(MediaInput("wav"))
    await first.close()
    third = await decoders.start(MediaInput("wav"))
    await second.close()
    await third.close()


async def test_no_garbage_is_collected_while_a_child_is_forked(decoders: Decoders) -> None:
    """What the collector frees may wait for a thread that the child does not have."""
    collecting: list[bool] = []
    os.register_at_fork(before=lambda: collecting.append(gc.isenabled()))
    async with await decoders.start(MediaInput("wav")):
        pass
    on_uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    assert collecting == ([False] if on_uvloop else [])  # asyncio runs no Python in the child
    assert gc.isenabled()


async def test_a_child_whose_user_leaves_while_it_starts_is_counted_until_its_end(decoders: Decoders) -> None:
    before = {child.pid for child in psutil.Process().children()}
    starting = asyncio.create_task(decoders.start(MediaInput("ogg")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the task of its own has begun
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert decoders.running == 1
    await until(lambda: decoders.running == 0, what="the end of the child")
    assert {child.pid for child in psutil.Process().children()} <= before


async def test_a_child_that_is_abandoned_ends(decoders: Decoders, tmp_path: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    data = encode(pcm, rate, "wav", tmp_path).read_bytes()
    async with await decoders.start(MediaInput("wav")) as decoder:
        await decoder.feed(data[:1000])
        process = decoder._process
    assert process.returncode is not None


@pytest.mark.one_loop
async def test_a_child_has_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAKEET_REDIS_URL", "redis://:secret@127.0.0.1")
    decoders = Decoders(1)
    async with await decoders.start(MediaInput("wav")) as decoder:
        environ = Path(f"/proc/{decoder._process.pid}/environ").read_bytes()  # noqa: ASYNC240 - no disk
    assert b"secret" not in environ


async def _emptied(decoder: Decoder) -> None:
    async for _ in decoder.blocks():
        pass


@pytest.mark.parametrize("stops", ["file before its samples", "file among its samples", "fed media"])
async def test_a_child_that_stands_still_is_not_waited_for(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: str
) -> None:
    """A file counts as there from the start, and media that is fed, once its end is."""
    rate, pcm = read_pcm(RECORDING)
    path = encode(pcm * 40, rate, "wav", tmp_path)
    file = None if stops == "fed media" else path
    async with asyncio.timeout(60), await decoders.start(MediaInput("wav", file=file)) as decoder:
        if stops == "file among its samples":
            await decoder.audio()
        os.kill(decoder._process.pid, signal.SIGSTOP)
        monkeypatch.setattr("ingress.media.decoder._STALL_S", 0.2)
        if stops == "fed media":
            await decoder.feed(b"RIFF")
            asyncio.get_running_loop().call_later(0.1, decoder.end_input)
        with pytest.raises(MediaError, match="too long"):
            await (_emptied(decoder) if stops == "file among its samples" else decoder.audio())


async def test_media_that_is_fed_is_waited_for_while_its_client_is_silent_and_no_longer(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.media.decoder._STALL_S", 0.0)
    monkeypatch.setattr("ingress.media.decoder._OPEN_INPUT_S", 0.2)
    async with await decoders.start(MediaInput("wav")) as decoder:
        async with asyncio.timeout(60):
            with pytest.raises(MediaError, match="too long"):
                await decoder.audio()
