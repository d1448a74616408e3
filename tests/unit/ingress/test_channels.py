"""A connection whose dialect has two channels: two streams, which begin and end together."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence

import pytest

from common.entries import LineKind
from common.errors import NoFreeStream, NoWorker
from common.messages import Audio, Encoding, Hello, Result, ServerMessage
from common.options import StreamOptions
from ingress.backplane import NOBODY, Caller, StreamListener
from ingress.clients.streams import split_channels
from ingress.dialects.audio_input import AudioInput
from ingress.dialects.dialect import Frame
from ingress.dialects.native import NativeDialect
from tests.fake_backplane import FakeLink, ScriptedBackplane, some_result
from tests.ingress_harness import serving, wait_until

pytestmark = pytest.mark.one_loop


class _Stereo(NativeDialect):
    """The native protocol with two channels of pcm16, and their number in each result. No `hello`."""

    def __init__(self) -> None:
        super().__init__(16000)
        self.num_streams = 2
        self.options = StreamOptions(sample_rate=8000)
        self._input = AudioInput(Encoding.PCM16, 8000, 2)

    def encode(self, message: ServerMessage, stream: int) -> Sequence[Frame]:
        if isinstance(message, Hello):
            return ()
        (frame,) = super().encode(message, stream)
        if isinstance(message, Result):
            return (Frame(json.dumps(json.loads(frame.data) | {"channel": stream}).encode()),)
        return (frame,)


def _b64(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def test_channels_are_split_whatever_the_size_of_a_sample() -> None:
    for encoding, format_ in ((Encoding.PCM16, "h"), (Encoding.F32, "f"), (Encoding.MULAW, "b")):
        payload = struct.pack(f"<6{format_}", 1, -1, 2, -2, 3, -3)
        left, right = split_channels(Audio(payload, encoding, True), 2)
        assert left == Audio(struct.pack(f"<3{format_}", 1, 2, 3), encoding, True)
        assert right == Audio(struct.pack(f"<3{format_}", -1, -2, -3), encoding, True)


async def test_two_channels_are_two_streams_with_one_end() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, dialect=_Stereo, max_buffered_samples=1000) as harness:
        client = await harness.tcp()
        await wait_until(lambda: len(backplane.links) == 2)
        pcm = struct.pack("<6h", 1, -1, 2, -2, 3, -3)
        await client.send({"type": "audio", "data": _b64(pcm)})
        await client.send({"type": "close"})
        left, right = backplane.links
        await wait_until(lambda: right.log == ["begin", "append", "final"])
        assert (bytes(left.payload), bytes(right.payload)) == (
            struct.pack("<3h", 1, 2, 3),
            struct.pack("<3h", -1, -2, -3),
        )
        assert left.options == right.options == StreamOptions(sample_rate=8000)
        right.listener.on_result(LineKind.FINAL, some_result(1, "right", final=True))
        left.listener.on_result(LineKind.PARTIAL, some_result(1, "le"))
        left.listener.on_result(LineKind.FINAL, some_result(2, "left", final=True))
        heard = [(message["channel"], message["text"]) for message in await client.receive_all()]
        assert heard == [(1, "right"), (0, "le"), (0, "left")]
        await client.close()
        assert left.log == right.log == ["begin", "append", "final", "release"]


@pytest.mark.parametrize("ended", [False, True])
async def test_a_failure_of_one_ends_both(ended: bool) -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, dialect=_Stereo) as harness:
        client = await harness.tcp()
        await client.send({"type": "audio", "data": _b64(b"\0" * 8)})
        await wait_until(lambda: len(backplane.links) == 2 and "append" in backplane.links[1].log)
        left, right = backplane.links
        if ended:
            left.listener.on_error(NoWorker())
        else:
            left.listener.on_failure(NoWorker())
        (error,) = await client.receive_all()
        assert error["code"] == "no_worker"
        await client.close()
        assert left.log[-1] == ("release" if ended else "abandon")
        assert right.log[-1] == "abandon"


async def test_where_only_one_is_admitted_its_slot_is_given_back() -> None:
    class _OneSlot(ScriptedBackplane):
        async def admit(self, listener: StreamListener, caller: Caller = NOBODY) -> FakeLink:
            if self.links:
                raise NoFreeStream
            return await super().admit(listener, caller)

    backplane = _OneSlot()
    async with serving(backplane, dialect=_Stereo) as harness:
        client = await harness.tcp()
        (error,) = await client.receive_all()
        assert error["code"] == "no_free_stream"
        await client.close()
        assert backplane.link.log == ["abandon"]
