"""What a dialect decides of its connection: when its WebSocket opens, how it is refused, what it is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from common.entries import LineKind
from common.errors import NoFreeStream, StreamError
from common.messages import ErrorMessage, Hello, Result, ServerMessage
from ingress.dialects.dialect import Frame, Heard
from ingress.dialects.native import NativeDialect
from ingress.http.refusal import Refusal, Refused
from ingress.request import Request
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import HANDSHAKE, serving, wait_until

pytestmark = pytest.mark.one_loop


class _Late(NativeDialect):
    """A protocol whose WebSocket opens with the admission, and that answers some messages by itself."""

    def __init__(self) -> None:
        super().__init__(16000)
        self.resumes = False
        self.admitted_first = True
        self.headers = (("x-request-id", "7"),)

    def decode_text(self, data: bytes) -> Heard:
        if data == b"hum":
            self.replies += (Frame(b"one"), Frame(b"two"))
            return None
        return super().decode_text(data)

    def encode(self, message: ServerMessage, stream: int) -> Sequence[Frame]:
        if isinstance(message, Hello):
            return ()
        if isinstance(message, Result):
            return (Frame(b"before"), *super().encode(message, stream), Frame(b"after"))
        return super().encode(message, stream)

    def refusal(self, error: StreamError) -> Refusal:
        return Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE, error.message, (("Retry-After", "5"),), b"{}", "application/json"
        )


class _Early(_Late):
    """The same, opened at once, which closes without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.admitted_first = False

    def encode(self, message: ServerMessage, stream: int) -> Sequence[Frame]:
        return () if isinstance(message, ErrorMessage) else super().encode(message, stream)


async def test_a_websocket_opens_only_once_there_is_a_stream_for_it() -> None:
    backplane = ScriptedBackplane()
    backplane.gate.clear()
    async with serving(backplane, dialect=_Late) as harness:
        client = await harness.raw_ws()
        client.writer.write(HANDSHAKE + b"\x81\x83\0\0\0\0hum")  # what comes early is kept
        await wait_until(lambda: backplane.num_waiting == 1)
        backplane.gate.set()
        answer = await client.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"x-request-id: 7\r\n" in answer
        assert await client.reader.readexactly(10) == b"\x81\x03one\x81\x03two"
        await client.close()
        await wait_until(lambda: not harness.connections)
        assert backplane.link.log == ["abandon"]


async def test_a_full_cluster_is_a_status_before_the_upgrade() -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = NoFreeStream()
    async with serving(backplane, dialect=_Late) as harness:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(harness.ws_url):
                raise AssertionError("it was opened")
        response = caught.value.response
        assert (response.status_code, response.body) == (503, b"{}")
        assert response.headers["Retry-After"] == "5"
        assert response.headers["Content-Type"] == "application/json"
        await wait_until(lambda: not harness.connections)
        assert backplane.links == []


@pytest.mark.parametrize("how", ["closed", "aborted", "frames"])
async def test_a_client_that_leaves_before_the_upgrade_leaves_no_slot_behind(how: str) -> None:
    backplane = ScriptedBackplane()
    backplane.gate.clear()
    async with serving(backplane, dialect=_Late) as harness:
        client = await harness.raw_ws()
        client.writer.write(HANDSHAKE)
        await wait_until(lambda: backplane.num_waiting == 1)
        if how == "aborted":
            client.writer.transport.abort()
        elif how == "closed":
            client.writer.write_eof()
        else:
            client.writer.write(b"\x88\x80\0\0\0\0" + b"\x89\x80\0\0\0\0" * 1000)
            client.writer.write_eof()
        backplane.gate.set()
        await wait_until(lambda: bool(backplane.links) and backplane.link.log == ["abandon"])
        await wait_until(lambda: not harness.connections)
        await client.close()


async def test_a_draining_ingress_answers_with_a_status_too() -> None:
    backplane = ScriptedBackplane()
    backplane.gate.clear()
    async with serving(backplane, dialect=_Late) as harness:
        client = await harness.raw_ws()
        client.writer.write(HANDSHAKE)
        await wait_until(lambda: backplane.num_waiting == 1)
        for connection in list(harness.connections):
            connection.drain()
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.count(b"HTTP/1.1") == 1
        backplane.gate.set()
        await client.close()
        await wait_until(lambda: bool(backplane.links) and backplane.link.log == ["abandon"])


async def test_a_protocol_without_resumption_is_closed_at_once_and_may_say_nothing() -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = NoFreeStream()
    async with (
        serving(backplane, dialect=_Early, refused_grace_s=60) as harness,
        connect(harness.ws_url) as client,
    ):
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1013


async def test_a_message_is_several_frames_also_for_a_slow_reader() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, dialect=_Late) as harness, connect(harness.ws_url) as client:
        (connection,) = harness.connections
        await client.send("hum")
        assert [await client.recv(), await client.recv()] == ["one", "two"]
        assert backplane.link.log == []  # it began nothing
        await client.send(b"\0\0")
        await wait_until(lambda: "append" in backplane.link.log)
        connection.pause_writing()
        for seq in (1, 2):
            backplane.link.listener.on_result(LineKind.PARTIAL, some_result(seq, f"{seq}"))
        assert connection.waiting_bytes > 0
        connection.resume_writing()
        got = [str(await client.recv()) for _ in range(6)]
        assert [got[at] for at in (0, 2, 3, 5)] == ["before", "after", "before", "after"]
        assert [json.loads(got[at])["seq"] for at in (1, 4)] == [1, 2]


async def test_a_refusal_is_written_in_the_way_of_its_path() -> None:
    def stranger(request: Request) -> None:
        raise Refused(Refusal(HTTPStatus.UNAUTHORIZED, "Who are you?"))

    def shape(refusal: Refusal) -> Refusal:
        return Refusal(refusal.status, refusal.sentence, (("x-shaped", "yes"),), b'{"shaped":true}', "a/b")

    async with serving(
        ScriptedBackplane(),
        authenticate=stranger,  # type: ignore[arg-type]  # it lets nobody in
        shapes={"/ws": shape},
    ) as harness:
        for path, shaped in (("/ws", True), ("/", False)):
            with pytest.raises(InvalidStatus) as caught:
                async with connect(harness.ws_url + path):
                    raise AssertionError("it was opened")
            assert ("x-shaped" in caught.value.response.headers) is shaped
        plain = await harness.raw_ws()
        plain.writer.write(b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        answer = await plain.reader.read()
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert answer.endswith(b'{"shaped":true}')
        await plain.close()
