"""The order of messages and samples where nothing is taken for a while."""

from __future__ import annotations

import io
import wave

import pytest

from common.errors import StreamError
from common.messages import Audio, ClientMessage, Finalize
from ingress.media import inlet as inlets
from ingress.media.decoder import Decoders
from ingress.media.inlet import MediaInlet
from ingress.media.wanted import Media, MediaWanted
from tests.ingress_harness import wait_until

pytestmark = pytest.mark.one_loop

_BYTES = 256 << 10  # some blocks of samples
_LONG_S = 3600.0


class _Sink:
    """Hears everything, while it is open."""

    def __init__(self, *, is_open: bool) -> None:
        self.heard: list[ClientMessage] = []
        self.is_open = is_open
        self.num_refused = 0

    @property
    def takes_audio(self) -> bool:
        self.num_refused += not self.is_open
        return self.is_open

    def open(self, inlet: MediaInlet) -> None:
        self.is_open = True
        inlet.room()

    @property
    def num_bytes(self) -> int:
        return sum(len(message.payload) for message in self.heard if isinstance(message, Audio))

    def decodes_at(self, sample_rate: int) -> None:
        pass

    def received_decoded(self, message: ClientMessage) -> None:
        self.heard.append(message)

    def received_fault(self, error: StreamError) -> None:
        raise error

    def on_media_room(self) -> None:
        pass


def _wav() -> Media:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(_BYTES))
    return Media(file.getvalue())


async def test_a_message_waits_for_the_audio_before_it_however_long_nothing_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoders, sink = Decoders(1), _Sink(is_open=False)
    inlet = MediaInlet(decoders, MediaWanted(demuxer="wav"), sink)
    monkeypatch.setattr(inlets, "_BEGIN_S", 0.0)  # it is over at once
    inlet.take(_wav(), 0)
    inlet.take(Finalize(), 0)
    await wait_until(lambda: sink.num_refused >= 2)  # samples wait, and so does the message
    monkeypatch.setattr(inlets, "_BEGIN_S", _LONG_S)
    sink.open(inlet)
    await wait_until(lambda: Finalize() in sink.heard)
    assert sink.heard.index(Finalize()) == len(sink.heard) - 1
    assert sink.num_bytes == _BYTES
    inlet.close()
    await wait_until(lambda: decoders.running == 0)


async def test_messages_go_on_at_once_where_no_samples_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlets, "_BEGIN_S", _LONG_S)
    decoders, sink = Decoders(1), _Sink(is_open=True)
    inlet = MediaInlet(decoders, MediaWanted(demuxer="wav"), sink)
    inlet.take(_wav(), 0)
    await wait_until(lambda: sink.num_bytes == _BYTES)
    sink.is_open = False
    for _ in range(2):
        inlet.take(Finalize(), 0)
    await wait_until(lambda: sink.num_refused > 0)
    sink.open(inlet)
    await wait_until(lambda: sink.heard[-2:] == [Finalize(), Finalize()])
    inlet.close()
    await wait_until(lambda: decoders.running == 0)
