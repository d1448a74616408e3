"""The TCP port, with real sockets and the backplane in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import struct

import pytest

from common.entries import LineKind
from common.errors import ErrorCode, NoFreeStream, NoWorker, RedisUnavailable, StreamError
from ingress.capabilities import CAPABILITIES
from ingress.protocol import YOUNG
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import serving, wait_until


def _audio(num_samples: int, **more: object) -> dict[str, object]:
    return {"type": "audio", "data": base64.b64encode(b"\0\0" * num_samples).decode(), **more}


def _logged(caplog: pytest.LogCaptureFixture, code: str) -> list[tuple[str, object]]:
    """Level and stream of each record about an error of that code."""
    records = [record for record in caplog.records if getattr(record, "code", None) == code]
    return [(record.levelname, getattr(record, "stream_id", None)) for record in records]


async def test_a_stream_from_hello_to_final() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.tcp()
        hello = await client.receive()
        assert hello == {
            "type": "hello",
            "stream_id": 1,
            "sample_rate": 16000,
            "resume_token": "secret",
            "capabilities": list(CAPABILITIES),
        }
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}
        await client.send(_audio(160))
        assert (await client.receive())["text"] == "160 samples"
        await client.send({"type": "audio", "samples": [0.0] * 40, "final": True})
        final = await client.receive()
        assert final["is_final"] is True
        assert final["text"] == "200 samples"
        assert await client.receive_all() == []
        await client.close()
        assert harness.backplane.link.log == ["begin", "append", "final", "release"]
        await wait_until(lambda: not harness.connections)


async def test_everything_in_one_packet_before_hello() -> None:
    backplane = ScriptedBackplane(echo=True)
    backplane.gate.clear()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        messages = [{"type": "config", "words": True}, _audio(10), {"type": "ping"}, {"type": "close"}]
        await client.send(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
        backplane.gate.set()
        received = await client.receive_all()
        await client.close()
        assert [message["type"] for message in received] == ["hello", "pong", "result", "result"]
        assert received[-1]["is_final"]
        options = backplane.link.options
        assert options is not None
        assert options.words


async def test_closing_the_sending_side_finishes_the_stream() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.tcp()
        await client.send(_audio(10))
        client.writer.write(json.dumps(_audio(5)).encode())  # no newline at the end
        client.writer.write_eof()
        received = await client.receive_all()
        await client.close()
        assert [m.get("text") for m in received[1:]] == ["10 samples", "15 samples", "15 samples"]
        assert received[-1]["is_final"]


async def test_a_client_that_disappears_has_its_stream_abandoned() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_audio(10))
        await wait_until(lambda: "append" in harness.backplane.link.log)
        raw = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await wait_until(lambda: harness.backplane.link.log[-1] == "abandon")
        await wait_until(lambda: not harness.connections)


async def test_a_client_that_asked_to_resume_has_its_stream_kept() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "config", "resume": True})
        await client.send(_audio(10))
        await wait_until(lambda: "append" in harness.backplane.link.log)
        await client.close()
        await wait_until(lambda: harness.backplane.link.log[-1] == "keep")


async def test_a_client_that_never_spoke_gives_its_admission_back() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.close()
        await wait_until(lambda: harness.backplane.link.log == ["abandon"])


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (NoFreeStream(), "no_free_stream"),
        (NoWorker(), "no_worker"),
        (RedisUnavailable(), "redis_unavailable"),
    ],
)
async def test_a_refusal_says_why_and_closes(refusal: StreamError, code: str) -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = refusal
    async with serving(backplane) as harness:
        client = await harness.tcp()
        (message,) = await client.receive_all()
        await client.close()
        assert message == {"type": "error", "code": code, "message": refusal.message}


async def test_the_sentence_for_a_full_cluster_is_as_documented() -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = NoFreeStream()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        assert (await client.receive())["message"] == "No free streaming state available."
        await client.send(_audio(10))
        assert await client.receive_all() == []
        await client.close()


async def test_a_refused_client_may_still_resume() -> None:
    backplane = ScriptedBackplane(echo=True)
    backplane.refusal = NoFreeStream()
    backplane.resumption = (100, 60, False)
    async with serving(backplane) as harness:
        client = await harness.tcp()
        assert (await client.receive())["code"] == "no_free_stream"
        request = {"type": "resume", "stream_id": 7, "resume_token": "old", "last_seq": 2}
        await client.send(request | {"audio_ack_samples": 60})
        resumed = await client.receive()
        assert resumed["type"] == "resumed"
        assert resumed["stream_id"] == 7
        assert resumed["next_sample"] == 100
        await client.send(_audio(20, final=True))
        assert (await client.receive())["text"] == "120 samples"
        await client.close()


async def test_resuming_gives_the_unused_admission_back() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        request = {"type": "resume", "stream_id": 7, "resume_token": "old", "last_seq": 0}
        await client.send(request | {"audio_ack_samples": 0})
        assert (await client.receive())["type"] == "resumed"
        assert backplane.links[0].log == ["abandon"]
        await client.close()
        await wait_until(lambda: backplane.links[1].log == ["keep"])


async def test_a_resumption_that_is_refused_closes_and_leaks_nothing() -> None:
    backplane = ScriptedBackplane()
    backplane.resumption = StreamError(ErrorCode.RESUME_REFUSED, "It is gone.")
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        request = {"type": "resume", "stream_id": 7, "resume_token": "old", "last_seq": 0}
        await client.send(request | {"audio_ack_samples": 0})
        (message,) = await client.receive_all()
        assert message["code"] == "resume_refused"
        await client.close()
        assert backplane.links[0].log == ["abandon"]


async def test_a_stream_that_another_connection_took_says_so_and_is_left_alone() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_audio(10))
        await wait_until(lambda: "append" in harness.backplane.link.log)
        harness.backplane.link.listener.on_taken()
        (message,) = await client.receive_all()
        await client.close()
        assert (message["code"], message["stream_id"]) == ("resumed_elsewhere", 1)
        assert harness.backplane.link.log == ["begin", "append"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{nonsense\n", "bad_json"),
        (b"[]\n", "bad_message"),
        (b'{"type":"audio","data":"AAA="}\n'.replace(b"AAA=", b"AA=="), "odd_byte_count"),
        (b'{"type":"audio","data":"AAA=","encoding":"mp3"}\n', "wrong_encoding"),
        (b'{"type":"audio","samples":[NaN]}\n', "bad_samples"),
        (b'{"type":"config","beam":3}\n', "unknown_option"),
        (b"x" * 70_000 + b"\n", "line_too_long"),
        (b"x" * 70_000, "line_too_long"),
    ],
)
async def test_a_fault_ends_its_own_stream_and_no_other(line: bytes, code: str) -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        neighbour = await harness.tcp()
        client = await harness.tcp()
        await neighbour.receive()
        await client.receive()
        await client.send(_audio(10))
        await client.receive()
        await client.send(line)
        final, message = await client.receive_all()
        assert final["is_final"] is True
        assert final["text"] == "10 samples"
        assert message["type"] == "error"
        assert message["code"] == code
        assert message["stream_id"] == 2
        await client.close()
        assert harness.backplane.links[1].log == ["begin", "append", "final", "release"]
        await neighbour.send(_audio(10, final=True))
        assert (await neighbour.receive())["text"] == "10 samples"
        await neighbour.close()


async def test_unknown_types_and_audio_after_final_let_the_stream_go_on() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "weather"})
        assert (await client.receive())["code"] == "unknown_type"
        await client.send(_audio(10, final=True))
        await client.send(_audio(10))
        assert (await client.receive())["code"] == "audio_after_final"
        link = harness.backplane.link
        link.listener.on_result(LineKind.FINAL, some_result(1, "ten", final=True))
        assert (await client.receive())["text"] == "ten"
        await client.close()
        assert link.log == ["begin", "final", "release"]


async def test_errors_that_let_the_stream_go_on_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        for _ in range(5):
            await client.send({"type": "weather"})
            assert (await client.receive())["code"] == "unknown_type"
        await client.send(_audio(10, final=True))
        for _ in range(3):
            await client.send(_audio(10))
            assert (await client.receive())["code"] == "audio_after_final"
        await client.close()
    assert _logged(caplog, "unknown_type") == [("INFO", 1)] + [("DEBUG", 1)] * 4
    assert _logged(caplog, "audio_after_final") == [("INFO", 1)] + [("DEBUG", 1)] * 2


async def test_a_fault_before_all_audio_has_no_final() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "config", "words": True})
        await client.send(b"{nonsense\n")
        (message,) = await client.receive_all()
        assert message["code"] == "bad_json"
        await client.close()
        assert harness.backplane.link.log == ["begin", "abandon"]


async def test_acknowledgements_reach_every_client_and_never_go_back() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_audio(100))
        await wait_until(lambda: bool(harness.backplane.link.log))
        listener = harness.backplane.link.listener
        for samples in (40, 30, 40, 90):
            listener.on_ack(samples)
        assert await client.receive() == {"type": "ack", "audio_ack_samples": 40}
        assert await client.receive() == {"type": "ack", "audio_ack_samples": 90}
        await client.close()


async def test_floats_in_the_scale_of_integers_are_told_once() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.tcp()
        await client.receive()
        for _ in range(5):
            await client.send({"type": "audio", "samples": [12000.0] * 1000})
        await client.send({"type": "close"})
        received = await client.receive_all()
        await client.close()
        warnings = [message for message in received if message["type"] == "warning"]
        assert [set(warning) for warning in warnings] == [{"type", "code", "message"}]
        assert warnings[0]["code"] == "integer_scale"
        assert received[-1]["is_final"] is True


async def test_too_much_audio_ends_the_stream() -> None:
    async with serving(ScriptedBackplane(), max_buffered_samples=100) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_audio(60))
        await wait_until(lambda: bool(harness.backplane.link.log))
        link = harness.backplane.link
        link.listener.on_result(LineKind.PARTIAL, some_result(1, acked=50))
        await client.receive()
        await client.send(_audio(60))
        await client.send(_audio(60))
        await wait_until(lambda: link.log == ["begin", "append", "append", "final"])
        link.listener.on_result(LineKind.FINAL, some_result(2, final=True))
        assert (await client.receive())["is_final"] is True
        assert (await client.receive())["code"] == "too_much_audio"
        await client.close()


async def test_a_worker_failure_reaches_the_client_and_closes() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_audio(10))
        await wait_until(lambda: bool(harness.backplane.link.log))
        harness.backplane.link.listener.on_failure(NoWorker())
        (message,) = await client.receive_all()
        assert message["code"] == "no_worker"
        await client.close()


async def test_a_client_that_does_not_read_is_dropped_when_its_buffer_is_full(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(ScriptedBackplane(), send_buffer_bytes=8192) as harness:
        client = await harness.tcp()
        await client.receive()
        (server,) = harness.transports
        server.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(_audio(10))
        await wait_until(lambda: bool(harness.backplane.link.log))
        listener = harness.backplane.link.listener
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        text = "word " * 2000
        seq = 0
        while harness.backplane.link.log[-1] != "abandon":
            seq += 1
            listener.on_result(LineKind.TURN, some_result(seq, text, turn=True))
            await asyncio.sleep(0)
            assert seq < 5000
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        last = (await client.receive_all())[-1]
        await client.close()
        assert (last["code"], last["stream_id"]) == ("slow_reader", 1)
    assert _logged(caplog, "slow_reader") == [("INFO", 1)]


@pytest.mark.parametrize("ended", [False, True])
async def test_a_client_that_does_not_read_for_too_long_is_dropped(
    ended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(
        ScriptedBackplane(), unread_timeout_s=0.2, send_buffer_bytes=64 * 1024 * 1024
    ) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_audio(10))
        await wait_until(lambda: bool(harness.backplane.link.log))
        listener = harness.backplane.link.listener
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        text = "word " * 20000
        for seq in range(1, 200):
            listener.on_result(LineKind.TURN, some_result(seq, text, turn=True))
        if ended:
            listener.on_result(LineKind.FINAL, some_result(200, final=True))
        await wait_until(lambda: bool(_logged(caplog, "slow_reader")))
        assert harness.backplane.link.log[-1] == ("release" if ended else "abandon")
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        data = await client.reader.read()
        await client.close()
        if not ended:
            last = json.loads(data.splitlines()[-1])
            assert (last["code"], last["stream_id"]) == ("slow_reader", 1)
    assert _logged(caplog, "slow_reader") == [("INFO", 1)]


async def test_a_slow_reader_loses_no_turn_and_no_token() -> None:
    async with serving(ScriptedBackplane(), send_buffer_bytes=1024 * 1024) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_audio(10, final=True))
        await wait_until(lambda: bool(harness.backplane.link.log))
        listener = harness.backplane.link.listener
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        text = "word " * 2000
        for seq in range(1, 2000):
            turn = seq % 500 == 0
            kind = LineKind.TURN if turn else LineKind.PARTIAL
            listener.on_result(kind, some_result(seq, text, turn=turn, tokens=(seq,)))
        listener.on_result(LineKind.FINAL, some_result(2000, "end", final=True))
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        received = await client.receive_all()
        await client.close()
        next_seq = 1
        for message in received:
            assert message.get("seq_first", message["seq"]) == next_seq
            next_seq = message["seq"] + 1
        assert next_seq == 2001
        assert [token for message in received for token in message["token_ids"]] == list(range(1, 2000))
        assert sum(message["turn_detection"] == "end_of_utterance" for message in received) == 3
        assert len(received) < 1500
        assert received[-1]["is_final"]


async def test_a_full_audio_buffer_pauses_the_client_until_there_is_room() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        await wait_until(lambda: bool(harness.backplane.links))
        link = harness.backplane.link
        link.room = False
        await client.send(_audio(10))
        await wait_until(lambda: link.log == ["begin", "append"])
        link.room = True
        await client.send(_audio(10))
        for _ in range(20):
            await asyncio.sleep(0)
        assert link.log == ["begin", "append"]
        link.listener.on_room()
        await wait_until(lambda: link.log == ["begin", "append", "append"])
        await client.close()


async def test_draining_sends_clients_elsewhere() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        for connection in list(harness.connections):
            assert connection.state in YOUNG
            connection.drain()
        (message,) = await client.receive_all()
        await client.close()
        assert message["code"] == "draining"


async def test_an_error_in_one_connection_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.tcp()
        await client.receive()
        await wait_until(lambda: bool(harness.backplane.links))
        harness.backplane.link.broken = True
        await client.send(_audio(10))
        (message,) = await client.receive_all()
        await client.close()
        assert (message["code"], message["stream_id"]) == ("internal", 1)
        assert "defect" not in message["message"]
        other = await harness.tcp()
        await other.receive()
        await other.send(_audio(10, final=True))
        assert (await other.receive())["is_final"]
        await other.close()
    assert "A connection failed" in caplog.text
