"""What the server says in the native protocol, byte for byte as recorded, on both transports.

`python -m tests.unit.ingress.dialects.test_native_conversation` records it anew; the difference is then to be
read as a change of the protocol, and to be told to clients.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from websockets.frames import Frame, Opcode

from common.entries import LineKind
from common.errors import ErrorCode, NoFreeStream, NoWorker, StreamError, Unavailable
from common.messages import Result, Utterance, Word
from tests.fake_backplane import FakeLink, ScriptedBackplane
from tests.ingress_harness import Harness, serving, wait_until

pytestmark = pytest.mark.one_loop

RECORDED: Final = Path(__file__).with_name("recorded_conversations.json")
_CLOSE: Final = b"\x88"
_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="


class Client:
    """A socket whose server's bytes are kept. One message is one line, or one frame, on either transport."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, websocket: bool
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._websocket = websocket
        self.heard = b""

    async def say(self, *messages: dict[str, object] | bytes) -> None:
        for message in messages:
            text = message if isinstance(message, bytes) else json.dumps(message).encode()
            if self._websocket:
                self._writer.write(Frame(Opcode.TEXT, text).serialize(mask=True))
            else:
                self._writer.write(text + b"\n")
        await self._writer.drain()

    async def hear(self, messages: int = 1) -> None:
        """Wait for so many messages of the server."""
        async with asyncio.timeout(60):
            for _ in range(messages):
                self.heard += await self._one()

    async def _one(self) -> bytes:
        if not self._websocket:
            return await self._reader.readuntil(b"\n")
        head = await self._reader.readexactly(2)
        size = head[1]
        if size == 126:
            length = await self._reader.readexactly(2)
            head += length
            size = int.from_bytes(length)
        return head + await self._reader.readexactly(size)

    async def hear_the_end(self) -> None:
        """Wait until the server closes."""
        async with asyncio.timeout(60):
            if self._websocket:
                frame = b""
                while frame[:1] != _CLOSE:
                    frame = await self._one()
                    self.heard += frame
            else:
                self.heard += await self._reader.read()
        self._writer.close()


@asynccontextmanager
async def _client(harness: Harness, *, websocket: bool) -> AsyncIterator[Client]:
    port = harness.ws_port if websocket else harness.tcp_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if websocket:
        writer.write(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + _KEY.encode() + b"\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")  # has the date
    yield Client(reader, writer, websocket=websocket)
    writer.close()


def _audio(num_samples: int, **more: object) -> dict[str, object]:
    return {"type": "audio", "data": base64.b64encode(b"\0\0" * num_samples).decode(), **more}


def _result(seq: int, text: str, *, turn: str = "running", final: bool = False, **more: object) -> Result:
    fields: dict[str, object] = {
        "text": text,
        "token_ids": (seq, 1023),
        "confidence_scores": (0.9731, 1.0),
        "is_final": final,
        "last_state": "speech",
        "turn_detection": turn,
        "seq": seq,
        "audio_ack_samples": 160 * seq,
    }
    return Result(**(fields | more))  # type: ignore[arg-type]


def _tell(link: FakeLink, kind: LineKind, result: Result) -> None:
    link.listener.on_result(kind, result)


def _fail(link: FakeLink, error: StreamError) -> None:
    link.listener.on_error(error)


async def _begun(harness: Harness, client: Client, *messages: dict[str, object]) -> FakeLink:
    await client.hear()
    await client.say(*messages, _audio(100))
    link = harness.backplane.link
    await wait_until(lambda: "append" in link.log)
    return link


async def a_whole_stream(harness: Harness, client: Client) -> None:
    await client.say({"type": "ping"}, {"type": "weather", "is": "h\u00e9"})
    await client.hear(2)
    link = await _begun(harness, client, {"type": "config", "words": True, "auto_finalize": True})
    _tell(link, LineKind.PARTIAL, _result(1, "go", words=(Word("go", 0.08, 0.24, 0.5),)))
    _tell(link, LineKind.TURN, _result(2, "go", turn="start_of_utterance", words=(), last_state="silence"))
    link.listener.on_ack(500)
    _tell(link, LineKind.PARTIAL, _result(3, 'go "forw\u00e4rts" \u4f60\n\u2028', words=(), last_state=None))
    utterance = Utterance(1, "go forward", 0.1, 1.25)
    _tell(link, LineKind.TURN, _result(4, "go", turn="end_of_utterance", utterances=(utterance,)))
    await client.hear(5)
    await client.say(_audio(100, final=True), _audio(10), {"type": "close"}, {"type": "ping"})
    await client.hear(2)
    _tell(
        link, LineKind.FINAL, _result(5, "go forward " * 20, final=True, token_ids=(), confidence_scores=())
    )
    await client.hear_the_end()


async def a_slow_reader(harness: Harness, client: Client) -> None:
    link = await _begun(harness, client, {"type": "config", "words": True})
    (connection,) = harness.connections
    connection.pause_writing()
    for seq in range(1, 4):
        words = (Word(f"w{seq}", 0.1, 0.2, 0.5),)
        _tell(link, LineKind.PARTIAL, _result(seq, "w " * seq, words=words, last_state=None))
    _tell(link, LineKind.TURN, _result(4, "w w w w", turn="pause"))
    utterances = (Utterance(1, "w", 0.0, 1.0),)
    _tell(link, LineKind.PARTIAL, _result(5, "w w w w w", utterances=utterances))
    _tell(link, LineKind.PARTIAL, _result(6, "w w w w w w"))
    connection.resume_writing()
    await client.hear(3)
    await client.say({"type": "close"})
    await wait_until(lambda: "final" in link.log)
    _tell(link, LineKind.FINAL, _result(7, "", final=True))
    await client.hear_the_end()


async def a_resumed_stream(harness: Harness, client: Client) -> None:
    await client.hear()
    harness.backplane.resumption = (1600, 800, False)
    harness.backplane.next_token = "secret"
    fields = {"stream_id": 7, "resume_token": "old", "last_seq": 3, "audio_ack_samples": 900}
    await client.say({"type": "resume", **fields})
    await client.hear()
    link = harness.backplane.link
    _tell(link, LineKind.PARTIAL, _result(4, "on"))
    await client.hear()
    link.listener.on_failure(NoWorker())
    await client.hear_the_end()


async def a_fault(harness: Harness, client: Client) -> None:
    link = await _begun(harness, client)
    await client.say(b'{"type":"audio","data":"*"}')
    await wait_until(lambda: "final" in link.log)
    _tell(link, LineKind.FINAL, _result(1, "go", final=True))
    await client.hear_the_end()


async def a_fault_at_once(harness: Harness, client: Client) -> None:
    await client.hear()
    await client.say({"type": "config", "words": "yes"})
    await client.hear_the_end()


async def a_stream_that_failed(harness: Harness, client: Client) -> None:
    link = await _begun(harness, client)
    _fail(link, Unavailable(ErrorCode.WORKER_FAILED, "The worker could not decode the stream."))
    await client.hear_the_end()


async def a_stream_that_went_elsewhere(harness: Harness, client: Client) -> None:
    link = await _begun(harness, client)
    link.listener.on_taken()
    await client.hear_the_end()


async def a_drained_ingress(harness: Harness, client: Client) -> None:
    await _begun(harness, client)
    for connection in list(harness.connections):
        connection.drain()
    await client.hear_the_end()


async def a_full_cluster(harness: Harness, client: Client) -> None:
    await client.say({"type": "ping"})
    await client.hear_the_end()


CONVERSATIONS: Final[dict[str, Callable[[Harness, Client], Awaitable[None]]]] = {
    conversation.__name__: conversation
    for conversation in (
        a_whole_stream,
        a_slow_reader,
        a_resumed_stream,
        a_fault,
        a_fault_at_once,
        a_stream_that_failed,
        a_stream_that_went_elsewhere,
        a_drained_ingress,
        a_full_cluster,
    )
}


async def _hold(name: str, *, websocket: bool) -> str:
    """Hold one conversation; all bytes of the server, readable as far as they are text."""
    backplane = ScriptedBackplane()
    if name == "a_full_cluster":
        backplane.refusal = NoFreeStream()
    async with serving(backplane) as harness, _client(harness, websocket=websocket) as client:
        await CONVERSATIONS[name](harness, client)
    return client.heard.decode("latin-1")


@pytest.mark.parametrize("websocket", [False, True], ids=["tcp", "websocket"])
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_the_server_says_what_was_recorded(name: str, websocket: bool) -> None:
    recorded = json.loads(RECORDED.read_text())[name]["websocket" if websocket else "tcp"]
    assert await _hold(name, websocket=websocket) == recorded


if __name__ == "__main__":
    spoken = {
        name: {kind: asyncio.run(_hold(name, websocket=kind == "websocket")) for kind in ("tcp", "websocket")}
        for name in CONVERSATIONS
    }
    RECORDED.write_text(json.dumps(spoken, indent=1) + "\n")
