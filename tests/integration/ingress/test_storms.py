"""Storms of reconnects: 200 clients of each protocol leave at every point of it, and leave nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
from collections.abc import Sequence
from typing import Final

import psutil
import pytest

from ingress.server import LISTEN_PATH
from tests.ingress_process import IngressProcess
from tests.ports import HOST
from tests.realtime_talk import append, update
from tests.stack import Stack, transcribe
from tests.stream_client import noise
from tests.waiting import until

pytestmark = pytest.mark.one_server

_NUM_CLIENTS: Final = 200
_LISTENS: Final = b""
"""A step of a client that waits for a word of the server."""
_PCM: Final = noise(0.4, seed=1)
_WAV: Final = (
    b"RIFF\xff\xff\xff\xffWAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    + b"data\xff\xff\xff\xff"
    + _PCM
)


def _frame(payload: str | bytes) -> bytes:
    """A frame of a client, masked with zeros (RFC 6455, section 5.2)."""
    kind, data = (0x81, payload.encode()) if isinstance(payload, str) else (0x82, payload)
    size = bytes([0x80 | len(data)]) if len(data) < 126 else struct.pack(">BH", 0x80 | 126, len(data))
    return bytes([kind]) + size + bytes(4) + data


def _cut(data: bytes) -> list[bytes]:
    """The same in two halves, between which a client may leave."""
    return [data[: len(data) // 2], data[len(data) // 2 :]]


def _websocket(path: str, *messages: str | bytes) -> list[bytes]:
    head = (
        f"GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    talk = [step for message in messages for step in _cut(_frame(message))]
    return [*_cut(head.encode()), _LISTENS, *talk, _LISTENS, b"\x88\x80" + bytes(4)]


def _lines(*messages: dict[str, str]) -> list[bytes]:
    return [step for message in messages for step in _cut(json.dumps(message).encode() + b"\n")]


def _upload(path: str, kind: str, body: bytes) -> list[bytes]:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return [*_cut(head.encode()), *_cut(body), _LISTENS]


def _form(*, stream: bool) -> bytes:
    part = "--b\r\nContent-Disposition: form-data; name="
    fields = f'{part}"stream"\r\n\r\n{str(stream).lower()}\r\n{part}"file"; filename="a.wav"\r\n\r\n'
    return fields.encode() + _WAV + b"\r\n--b--\r\n"


_AUDIO: Final = {"type": "audio", "data": base64.b64encode(_PCM).decode()}
_RAW: Final = f"{LISTEN_PATH}?encoding=linear16&sample_rate=16000"
_COMMITS: Final = (
    json.dumps(update(format={"type": "audio/pcm", "rate": 16_000}, turn_detection=None)),
    json.dumps(append(_PCM)),
    '{"type":"input_audio_buffer.commit"}',
    '{"type":"input_audio_buffer.clear"}',
)
_FORM: Final = "multipart/form-data; boundary=b"
_TALKS: Final[dict[str, list[bytes]]] = {
    "lines over TCP": [*_lines(_AUDIO), _LISTENS, *_lines({"type": "finalize"}, {"type": "close"}), _LISTENS],
    "WebSocket": _websocket("/", _PCM, '{"type":"finalize"}', _PCM, '{"type":"close"}'),
    "listen": _websocket(_RAW, '{"type":"KeepAlive"}', _PCM, '{"type":"Finalize"}', '{"type":"CloseStream"}'),
    "listen, a container": _websocket(LISTEN_PATH, _WAV[:64], _WAV[64:], '{"type":"Finalize"}', b""),
    "listen, two channels": _websocket(
        f"{_RAW}&channels=2&multichannel=true", _PCM, '{"type":"CloseStream"}'
    ),
    "realtime": _websocket("/v1/realtime", *_COMMITS),
    "upload to listen": _upload(LISTEN_PATH, "audio/wav", _WAV),
    "upload of a form": _upload("/v1/audio/transcriptions", _FORM, _form(stream=False)),
    "upload with a streamed answer": _upload("/v1/audio/transcriptions", _FORM, _form(stream=True)),
}


async def _leave(port: int, talk: Sequence[bytes], number: int) -> None:
    """Go as far as `number` says, and leave: by a reset, or by a close in good order."""
    point, by_reset = number % (len(talk) + 1), number // (len(talk) + 1) % 2 == 1
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        for step in talk[:point]:
            if step is _LISTENS:
                if not await reader.read(65536):
                    return  # refused, and closed: the ingress is full for a moment
                continue
            writer.write(step)
            await writer.drain()
    except ConnectionError:
        return
    finally:
        if by_reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


def _held(ingress: IngressProcess) -> tuple[int, int]:
    """Children and open files of the ingress."""
    process = psutil.Process(ingress.pid)
    return len(process.children()), process.num_fds()


def _no_more(now: Sequence[int], before: Sequence[int]) -> bool:
    return all(held <= was for held, was in zip(now, before, strict=True))


@pytest.mark.parametrize("protocol", _TALKS)
async def test_200_clients_that_leave_at_every_point_leave_nothing(stack: Stack, protocol: str) -> None:
    stack.worker(worker_max_streams=2 * _NUM_CLIENTS)
    ingress = stack.ingress(max_num_streams=2 * _NUM_CLIENTS)
    port = ingress.port if protocol == "lines over TCP" else ingress.ws_port
    await transcribe(ingress.ws_url, _PCM)  # what is opened once and kept
    await stack.empty()
    before = _held(ingress)
    async with asyncio.timeout(400):
        await asyncio.gather(*(_leave(port, _TALKS[protocol], number) for number in range(_NUM_CLIENTS)))
    await stack.empty()
    await until(lambda: ingress.status()["connected_streams"] == 0, what="the end of all streams")
    await until(lambda: _no_more(_held(ingress), before), what="the end of all children and sockets")
    # And the next client has its text as the first had.
    assert (await transcribe(ingress.ws_url, _PCM))[-1].text
